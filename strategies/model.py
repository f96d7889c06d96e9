"""Strategies whose server has a model of its own, and whose clients train theirs."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedfuse.algorithms.effort import Effort
from fedfuse.config.run_config import RunConfig
from fedfuse.factory.data import shared_samples
from fedfuse.factory.models import base_models, check_inputs
from fedfuse.flower import messages
from fedfuse.flower.samples import pack_held_out, pack_samples
from fedfuse.simulation.data_fit import SplitFit, fits
from fedfuse.simulation.memory_plan import Plan
from fedfuse.simulation.run_memory import plan_simulation
from fedfuse.tokenizers.tokenizer import TextTokenizer
from fedfuse.tracking.run import SERVER
from strategies.base import FEDERATED, ZERO_SHOT, BaseStrategy
from strategies.baselines import client_baselines, server_baselines
from strategies.client_registry import ClientInfo
from strategies.server_state import ServerState, open_server_state

log = logging.getLogger(__name__)
# Characters that are kept of what a client says of itself.
MOST_WORDS = 500
T = TypeVar("T")


class ModelStrategy(BaseStrategy):
    """Clients register with their tokenizers, train on private data and score their models.

    Args:
        server: config, the server's model and the run folder.

    Attributes:
        tokenizers: the clients' tokenizers by node.
        teachers: names of clients whose models do not learn.
    """

    server: ServerState

    def __init__(self, server: ServerState) -> None:
        super().__init__(server)
        self.tokenizers: dict[int, TextTokenizer] = {}
        self.teachers: set[str] = set()

    @classmethod
    def models(cls, config: RunConfig, clients: int) -> list[str]:
        """Base models of the server and of each client."""
        return base_models(config, clients)

    @classmethod
    def check_inputs(cls, config: RunConfig, clients: int) -> None:
        """Check devices, models and data of a run without loading a model."""
        check_inputs(config, clients)

    @classmethod
    def fits(cls, config: RunConfig, clients: int) -> list[SplitFit]:
        """How private, public and tested samples fit the models of those who see them."""
        return fits(config, clients)

    @classmethod
    def plan_memory(
        cls, config: RunConfig, clients: int, at_once: int, gpus_per_client: float
    ) -> Plan | None:
        """Peak memory of a simulation on this machine; models must be built."""
        return plan_simulation(config, clients, at_once, gpus_per_client)

    @staticmethod
    def open(config: RunConfig) -> ServerState:
        """The server's model and data."""
        return open_server_state(config)

    def initial(self) -> ArrayRecord:
        """The server's adapter."""
        return messages.arrays_to_record(self.server.local_model.adapter)

    def registration_request(self) -> RecordDict:
        """The samples that everybody shares, and the server's tokenizer."""
        registration_request, config = RecordDict({}), self.config
        pack_samples(registration_request, shared_samples(config.data, config.seed))
        messages.pack_tokenizer(registration_request, self.server.local_model.tokenizer)
        return registration_request

    def parse_registration(self, reply: Message) -> ClientInfo:
        """Parse a client's model, domain and tokenizer, and keep the tokenizer."""
        info = reply.content.config_records["info"]
        tokenizer = messages.unpack_tokenizer(reply.content)
        client = str(int(info["partition"]))  # type: ignore[arg-type]
        model, domain = str(info["model"]), str(info["own-domain"])
        # Clients of one model share one tokenizer.
        same = (t for t in self.tokenizers.values() if t.fingerprint == tokenizer.fingerprint)
        self.server.run.same_content(**{f"tokenizer_of_client_{client}": tokenizer.fingerprint})
        self.tokenizers[reply.metadata.src_node_id] = next(same, tokenizer)
        label = model.rsplit("/", 1)[-1].removeprefix("builtin:")
        adapter = str(info.get("adapter", ""))[:MOST_WORDS]
        learns = bool(info.get("learns", True))
        if not learns:
            self.teachers.add(client)
            log.info("client %s: a teacher that does not learn", client)
        return ClientInfo(client, model, f"{domain or client} / {label}", domain, adapter, learns)

    def learners(self, requests: Iterable[Message]) -> list[Message]:
        """Those of the requests that are for clients whose models can be trained."""
        name = self.messenger.name
        return [r for r in requests if name(r.metadata.dst_node_id) not in self.teachers]

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every client that can learn for local training."""
        return self.learners(super().configure_train(server_round, arrays, config, grid))

    def select_public_samples(self, server_round: int) -> None:
        """Select the public samples of a round."""
        self.server.select_public_samples(server_round)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Learn from the clients' replies; returns the server's new arrays and metrics."""
        return None, mean_loss(self.losses(server_round, replies))

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Record the clients' scores; returns their mean loss over clients and domains."""
        stage = FEDERATED if server_round else ZERO_SHOT

        def parse_reply(reply: Message) -> list[float]:
            scores = messages.unpack_scores(reply.content)
            client = self.messenger.name(reply.metadata.src_node_id)
            self.server.run.scores(stage, server_round, client, scores)
            return [score.loss for score in scores.values()]

        parsed = self.parse_replies(server_round, replies, parse_reply)
        return mean_loss([loss for _, losses in parsed for loss in losses])

    def evaluate_server(self, server_round: int) -> MetricRecord:
        """Score the server's model and record it."""
        stage = FEDERATED if server_round else ZERO_SHOT
        scores = self.server.score()
        self.server.run.scores(stage, server_round, SERVER, scores)
        mean = sum(score.loss for score in scores.values()) / len(scores)
        log.info("round %d: server loss %.4f nats/byte", server_round, mean)
        return MetricRecord({**messages.scores_to_metrics(scores)})

    def parse_replies(
        self, server_round: int, replies: Iterable[Message], parse_reply: Callable[[Message], T]
    ) -> Iterator[tuple[str, T]]:
        """Parse replies as they come; record what training took, and who ran out of memory."""
        efforts = self.client_efforts()

        def parse_both(reply: Message) -> tuple[T, str, int]:
            phase = reply.metadata.message_type.removeprefix("train.")
            return parse_reply(reply), phase, messages.unpack_max_tokens(reply.content)

        for client, (parsed, phase, tokens) in super().parse_replies(
            server_round, replies, parse_both
        ):
            if tokens:
                self.server.record_memory(server_round, client, phase, tokens)
            if phase in efforts and client not in self.teachers:
                self.server.run.training(FEDERATED, server_round, client, phase, efforts[phase])
            yield client, parsed

    def losses(self, server_round: int, replies: Iterable[Message]) -> list[float]:
        """Losses that the clients report, in the order of their names."""
        return [loss for _, loss in sorted(self.parse_replies(server_round, replies, take_loss))]

    def client_efforts(self) -> dict[str, Effort]:
        """What a round takes of a client, by phase."""
        return {"local": Effort.of(self.config.local, private=True)}

    def label_rounds(self) -> int:
        """Phases on the public set that the server has, and so public-only training."""
        return self.config.rounds

    def measure_baselines(self, last: int) -> None:
        """Standalone, public-only and, where the run config asks for it, centralized training."""
        log.info("baselines: standalone, public-only%s", ", centralized" * self.config.centralized)
        steps = sum(effort.steps for effort in self.client_efforts().values())
        content = RecordDict({})
        holdout = self.server.local_model.holdout
        pack_held_out(content, holdout.samples if holdout else ())
        rounds = {c: self.participation.rounds(c) for c in self.messenger.names.values()}
        requests = []
        for node, client in self.messenger.names.items():
            config = ConfigRecord({"steps": steps, "rounds": rounds[client]})
            messages.pack_context(config, self.request_context(last))
            whole = RecordDict({**content, "config": config})
            requests.append(Message(whole, node, messages.BASELINE))
        requests = self.learners(requests)
        together = steps * sum(rounds.values()) // self.config.rounds

        def meanwhile() -> None:
            if not self.server.local_model.learns:
                log.info("the server has no baselines: it does not learn")
            else:
                server_baselines(self.server, together, self.label_rounds())

        with one_thread():
            replies = self.messenger.send_and_receive(self.config.rounds, requests, meanwhile)

        def parse_reply(reply: Message) -> None:
            client = self.messenger.name(reply.metadata.src_node_id)
            client_baselines(self.server, client, reply)

        deque(self.parse_replies(last, replies, parse_reply), maxlen=0)


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep the server to one core while simulated clients use the others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def take_loss(reply: Message) -> float:
    """Unpack the final training loss of a reply.

    Raises:
        FedfuseError: when it is missing or not a finite number.
    """
    return messages.unpack_number(reply.content, "loss")


def mean_loss(losses: Sequence[float]) -> MetricRecord | None:
    """Mean of the losses; None without any."""
    return MetricRecord({"loss": sum(losses) / len(losses)}) if losses else None

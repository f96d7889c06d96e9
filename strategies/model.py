"""Strategies whose server has a model of its own, and whose clients train theirs."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedfuse.config.run_config import RunConfig
from fedfuse.factory.models import base_models, check_inputs
from fedfuse.flower import messages
from fedfuse.simulation.memory_plan import Plan
from fedfuse.simulation.run_memory import plan_simulation
from fedfuse.tokenizers.tokenizer import TextTokenizer
from strategies.base import FEDERATED, ZERO_SHOT, BaseStrategy
from strategies.baselines import client_baselines, server_baselines
from strategies.client_registry import ClientInfo
from strategies.server_state import SERVER, ServerState, open_server_state

log = logging.getLogger(__name__)
T = TypeVar("T")


class ModelStrategy(BaseStrategy):
    """Clients tell their tokenizers, train on private data, and score their models.

    Args:
        server: config, the server's model and the run folder.

    Attributes:
        tokenizers: of the clients, by node.
    """

    server: ServerState

    def __init__(self, server: ServerState) -> None:
        super().__init__(server)
        self.tokenizers: dict[int, TextTokenizer] = {}

    @classmethod
    def models(cls, config: RunConfig, clients: int) -> list[str]:
        """Base models of the server and of each client."""
        return base_models(config, clients)

    @classmethod
    def check_inputs(cls, config: RunConfig, clients: int) -> None:
        """Check devices, models and data of a run without loading a model."""
        check_inputs(config, clients)

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
        """The server's tokenizer."""
        registration_request = RecordDict({})
        messages.pack_tokenizer(registration_request, self.server.local_model.tokenizer)
        return registration_request

    def parse_registration(self, reply: Message) -> ClientInfo:
        """A client's model, the domain of its data, and its tokenizer, which is kept."""
        info = reply.content.config_records["info"]
        tokenizer = messages.unpack_tokenizer(reply.content)
        client = str(int(info["partition"]))  # type: ignore[arg-type]
        model, domain = str(info["model"]), str(info["own-domain"])
        # Clients of one model share one tokenizer.
        same = (t for t in self.tokenizers.values() if t.fingerprint == tokenizer.fingerprint)
        self.tokenizers[reply.metadata.src_node_id] = next(same, tokenizer)
        label = model.rsplit("/", 1)[-1].removeprefix("builtin:")
        return ClientInfo(client, model, f"{domain or client} / {label}", domain)

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
        """Write the clients' scores down; returns their mean loss over clients and domains."""
        stage = FEDERATED if server_round else ZERO_SHOT

        def note(reply: Message) -> list[float]:
            scores = messages.unpack_scores(reply.content)
            client = self.messenger.name(reply.metadata.src_node_id)
            self.server.run.scores(stage, server_round, client, scores)
            return [score.loss for score in scores.values()]

        noted = self.parse_replies(server_round, replies, note)
        return mean_loss([loss for _, losses in noted for loss in losses])

    def evaluate_server(self, server_round: int) -> MetricRecord:
        """Score the server's model and write it down."""
        stage = FEDERATED if server_round else ZERO_SHOT
        scores = self.server.score()
        self.server.run.scores(stage, server_round, SERVER, scores)
        mean = sum(score.loss for score in scores.values()) / len(scores)
        log.info("round %d: server loss %.4f nats/byte", server_round, mean)
        return MetricRecord({**messages.scores_to_metrics(scores)})

    def parse_replies(
        self, server_round: int, replies: Iterable[Message], read: Callable[[Message], T]
    ) -> Iterator[tuple[str, T]]:
        """The same, with a note on who trains in smaller parts since its memory ran out."""

        def read_both(reply: Message) -> tuple[T, str, int]:
            phase = reply.metadata.message_type.removeprefix("train.")
            return read(reply), phase, messages.unpack_max_tokens(reply.content)

        for client, (found, phase, tokens) in super().parse_replies(
            server_round, replies, read_both
        ):
            if tokens:
                self.server.note_memory(server_round, client, phase, tokens)
            yield client, found

    def losses(self, server_round: int, replies: Iterable[Message]) -> list[float]:
        """The losses that the clients report, in the order of their names."""
        return [loss for _, loss in sorted(self.parse_replies(server_round, replies, take_loss))]

    def measure_baselines(self, turn: int) -> None:
        """Standalone, public-only and centralized training."""
        log.info("baselines: standalone, public-only, centralized")
        config = ConfigRecord({})
        messages.pack_context(config, self.request_context(turn))
        requests = self.requests(messages.BASELINE, config)
        with one_thread():
            replies = self.messenger.send_and_receive(
                self.config.rounds, requests, lambda: server_baselines(self.server)
            )

        def note(reply: Message) -> None:
            client = self.messenger.name(reply.metadata.src_node_id)
            client_baselines(self.server, client, reply)

        deque(self.parse_replies(turn, replies, note), maxlen=0)


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
    """The loss that a reply says its sender ended with.

    Raises:
        FedfuseError: when it says nothing, or no finite number.
    """
    return messages.unpack_number(reply.content, "loss")


def mean_loss(losses: Sequence[float]) -> MetricRecord | None:
    """The mean of losses; nothing for none."""
    return MetricRecord({"loss": sum(losses) / len(losses)}) if losses else None

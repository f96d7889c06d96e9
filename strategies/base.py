"""The phases of a round, with Flower's signatures: what every fedfuse strategy shares.

``ModelStrategy`` is what those have in common whose server has a model of its own. A strategy that
exchanges something else, or chooses otherwise, overrides the hooks of the phase that it changes;
``FedMKT`` shows all of them, ``LLM2SLM`` and ``FedAvgLoRA`` the least.
"""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from numpy import ndarray

from fedfuse.errors import FedfuseError
from fedfuse.flower import messages
from fedfuse.flower.config import RunConfig
from fedfuse.report.writing import RunWriter
from strategies.exchange import Exchange, require
from strategies.session import SERVER

log = logging.getLogger(__name__)
T = TypeVar("T")

FEDERATED = "federated"
ZERO_SHOT = "zero-shot"
NODE_POLL_SECONDS = 0.2


class OpenRun(Protocol):
    """What a strategy is given, whatever else that may be: config and run folder."""

    config: RunConfig
    run: RunWriter

    def begin(self, server_round: int) -> None:
        """Take up what a round is about."""
        ...

    def checkpoint(self, server_round: int, strategy: Mapping[str, ndarray]) -> None:
        """Save what is needed to go on."""
        ...


@dataclass(frozen=True, slots=True)
class Member:
    """A client as it registers.

    Attributes:
        client: its name, the number of its partition.
        model: that it has, or asks.
        name: what reports call it.
        domain: of most of its data, empty for none.
    """

    client: str
    model: str
    name: str
    domain: str = ""


class PhasedStrategy(Strategy):
    """Register once; then per round train, distill and evaluate.

    Args:
        session: config, run folder, and what the strategy needs besides.

    Attributes:
        tunes_prompts: whether clients search prompts for a black box, or train models.
    """

    tunes_prompts = False

    def __init__(self, session: OpenRun) -> None:
        self.session = session
        self.config = session.config
        self.exchange: Exchange

    @classmethod
    @abstractmethod
    def open(cls, config: RunConfig) -> Self:
        """The strategy with the session that it needs."""

    # --- Hooks of the registration ----------------------------------------------------------------

    @abstractmethod
    def greeting(self) -> RecordDict:
        """What clients are told when they are asked who they are."""

    @abstractmethod
    def admit(self, reply: Message) -> Member:
        """Who a client says that it is.

        Raises:
            FedfuseError, KeyError, TypeError, ValueError: for a client that cannot take part.
        """

    def initial(self) -> ArrayRecord:
        """The server's arrays before the first round."""
        return ArrayRecord()

    # --- Hooks, in the order of a round; a strategy overrides what it changes ---------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every client for local training; ``config["reply"]`` says what to send back."""
        return self.requests(messages.LOCAL, ConfigRecord({**config, "reply": "nothing"}))

    @abstractmethod
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Learn from the clients' replies; returns the server's new arrays and metrics."""

    def configure_distill(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the clients what the server knows; no message skips the phase."""
        return []

    def aggregate_distill(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Take note of what the clients learned."""
        return None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every client to score its model."""
        run = self.session.run.folder.name
        return self.requests(messages.EVALUATE, ConfigRecord({**config, "run": run}))

    @abstractmethod
    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Write the clients' scores down; returns what they have in the mean."""

    @abstractmethod
    def evaluate_server(self, server_round: int) -> MetricRecord:
        """Score what the server has and write it down."""

    def measure_baselines(self, num_rounds: int) -> None:
        """What the same would be without the federation; where the run config asks for it."""

    def state(self) -> dict[str, ndarray]:
        """What the strategy itself has learned, as flat arrays for the checkpoint."""
        return {}

    def summary(self) -> None:
        """Log what will run."""
        config = self.config
        log.info("%s, %d rounds, seed %d", type(self).__name__, config.rounds, config.seed)
        log.info("run folder: %s", self.session.run.folder)

    # --- The run ----------------------------------------------------------------------------------

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the federation; Flower's signature and Flower's result.

        Raises:
            FedfuseError: when fewer than ``min-clients`` answer.
        """
        self.summary()
        self.exchange = Exchange(grid, self.session.run, timeout)
        train_config, evaluate_config = (
            train_config or ConfigRecord(),
            evaluate_config or ConfigRecord(),
        )
        self.register(grid, timeout)
        result = Result(arrays=initial_arrays)
        self._evaluate(0, result, grid, evaluate_config, evaluate_fn)
        for server_round in range(1, num_rounds + 1):
            train_config["round"] = evaluate_config["round"] = server_round
            self._train(server_round, result, grid, train_config)
            self._distill(server_round, result, grid, train_config)
            self.session.checkpoint(server_round, self.state())
            self._evaluate(server_round, result, grid, evaluate_config, evaluate_fn)
        if self.config.baselines:
            self.measure_baselines(num_rounds)
        return result

    def register(self, grid: Grid, timeout: float) -> None:
        """Wait for the clients, and ask who they are."""
        nodes = self._wait_for_nodes(grid, timeout)
        greeting = self.greeting()
        requests = [Message(greeting, node, messages.REGISTER) for node in nodes]
        members: dict[str, Member] = {}

        def admit(reply: Message) -> None:
            node = reply.metadata.src_node_id
            try:
                member = self.admit(reply)
                if member.client in members:
                    raise FedfuseError(f"partition {member.client} is taken by another client")
            except (FedfuseError, KeyError, TypeError, ValueError) as error:
                self.exchange.refuse(0, messages.REGISTER, node, error)
                return
            self.exchange.names[node] = member.client
            members[member.client] = member

        deque(self.exchange.stream(0, requests, greet=admit), maxlen=0)
        # By name: in which order clients are asked is no matter of who was quicker to register.
        self.exchange.names = dict(sorted(self.exchange.names.items(), key=lambda item: item[1]))
        require(len(self.exchange.names), self.config.min_clients, messages.REGISTER)
        run, found = self.session.run, members.items()
        run.describe(
            models=run.models | {client: member.model for client, member in found},
            names={SERVER: SERVER} | {client: member.name for client, member in found},
            own_domain={client: member.domain for client, member in found},
        )

    def requests(
        self, kind: str, config: ConfigRecord, content: RecordDict | None = None
    ) -> list[Message]:
        """The same message to every registered client."""
        whole = RecordDict({**(content or {}), "config": config})
        return [Message(whole, node, kind) for node in self.exchange.names]

    def accept(
        self, server_round: int, replies: Iterable[Message], read: Callable[[Message], T]
    ) -> Iterator[tuple[str, T]]:
        """What can be read of the replies, with the client's name, as they come.

        Replies that ``read`` raises an error for are refused and counted.
        """
        for reply in replies:
            try:
                found = read(reply)
            except (FedfuseError, KeyError, TypeError, ValueError) as error:
                metadata = reply.metadata
                self.exchange.refuse(
                    server_round, metadata.message_type, metadata.src_node_id, error
                )
                continue
            yield self.exchange.name(reply.metadata.src_node_id), found

    def _wait_for_nodes(self, grid: Grid, timeout: float) -> list[int]:
        """The ServerApp may start before the nodes are there."""
        deadline = time.monotonic() + timeout
        while len(nodes := list(grid.get_node_ids())) < self.config.min_clients:
            if time.monotonic() > deadline:
                raise FedfuseError(
                    f"{len(nodes)} clients connected within {timeout:g} s; "
                    f"allowed: at least {self.config.min_clients} (min-clients)"
                )
            time.sleep(NODE_POLL_SECONDS)
        return nodes

    def _train(self, server_round: int, result: Result, grid: Grid, config: ConfigRecord) -> None:
        log.info("round %d: clients train on private data", server_round)
        self.session.begin(server_round)
        requests = list(self.configure_train(server_round, result.arrays, config, grid))
        # A strategy may ask fewer clients than there are.
        minimum = min(self.config.min_clients, len(requests))
        replies = self.exchange.stream(server_round, requests, minimum=minimum)
        started = time.monotonic()
        arrays, metrics = self.aggregate_train(server_round, replies)
        deque(replies, maxlen=0)  # Whatever a strategy leaves out, every client is heard.
        seconds = time.monotonic() - started - replies.waited
        self.session.run.exchange(server_round, "server.aggregate", SERVER, seconds=seconds)
        if arrays is not None:
            result.arrays = arrays
        if metrics is not None:
            result.train_metrics_clientapp[server_round] = metrics

    def _distill(self, server_round: int, result: Result, grid: Grid, config: ConfigRecord) -> None:
        requests = list(self.configure_distill(server_round, result.arrays, config, grid))
        if requests:
            log.info("round %d: clients learn from the server", server_round)
            replies = self.exchange(server_round, requests, minimum=self.config.min_clients)
            self.aggregate_distill(server_round, replies)

    def _evaluate(
        self,
        server_round: int,
        result: Result,
        grid: Grid,
        config: ConfigRecord,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None,
    ) -> None:
        requests = self.configure_evaluate(server_round, result.arrays, config, grid)
        own: list[MetricRecord] = []
        replies = self.exchange(
            server_round, requests, lambda: own.append(self.evaluate_server(server_round))
        )
        metrics = self.aggregate_evaluate(server_round, replies)
        if metrics is not None:
            result.evaluate_metrics_clientapp[server_round] = metrics
        given = evaluate_fn(server_round, result.arrays) if evaluate_fn else None
        result.evaluate_metrics_serverapp[server_round] = given or own[0]

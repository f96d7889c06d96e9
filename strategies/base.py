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
from typing import Any, Protocol, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from numpy import ndarray

from fedfuse.config.run_config import RunConfig
from fedfuse.errors import FedfuseError
from fedfuse.flower import messages
from fedfuse.simulation.memory_plan import Plan
from fedfuse.tracking.checkpoints import Checkpoint, strip_prefix
from fedfuse.tracking.run_writer import RunWriter
from strategies.client_registry import ClientInfo, ClientRegistry
from strategies.messenger import Messenger, ReplyStream, require
from strategies.phases import Phase, PhaseRunner
from strategies.piggyback import PiggybackRunner
from strategies.results import restore_result, result_facts
from strategies.server_state import SERVER

log = logging.getLogger(__name__)
T = TypeVar("T")

FEDERATED = "federated"
ZERO_SHOT = "zero-shot"
NODE_POLL_SECONDS = 0.2


class OpenRun(Protocol):
    """What a strategy is given, whatever else that may be: config and run folder."""

    config: RunConfig
    run: RunWriter

    def checkpoint(
        self, server_round: int, strategy: Mapping[str, ndarray], result: Mapping[str, Any]
    ) -> None:
        """Save what is needed to go on."""
        ...

    def resume(self) -> Checkpoint | None:
        """Go back to the last whole round of the run to go on with, if there is one."""
        ...


class BaseStrategy(Strategy):
    """Register once; then per round train, distill and evaluate.

    Args:
        session: config, run folder, and what the strategy needs besides.
    """

    def __init__(self, session: OpenRun) -> None:
        self.session = session
        self.config = session.config
        self.registry = ClientRegistry(
            session.run, self.registration_request, self.parse_registration
        )
        self.messenger: Messenger

    @staticmethod
    @abstractmethod
    def open(config: RunConfig) -> OpenRun:
        """The session that the strategy needs."""

    # --- Before anything starts ------------------------------------------------------------------

    @classmethod
    def models(cls, config: RunConfig, clients: int) -> list[str]:
        """Base models of the server and of each client, built or fetched before the run."""
        return []

    @classmethod
    def check_inputs(cls, config: RunConfig, clients: int) -> None:
        """Check devices, models and data of a run without loading a model.

        Raises:
            FedfuseError: for data that cannot be split, or models that do not exist.
        """

    @classmethod
    def plan_memory(
        cls, config: RunConfig, clients: int, at_once: int, gpus_per_client: float
    ) -> Plan | None:
        """Peak memory of a simulation on this machine; None where it is too small to plan.

        Args:
            config: the run config.
            clients: their number.
            at_once: how many of them run at the same time.
            gpus_per_client: share of a GPU for each; with 0 they see none.

        Raises:
            NeedsUnknown: for a model whose memory is not known before it runs.
        """
        return None

    # --- Hooks of the registration ----------------------------------------------------------------

    @abstractmethod
    def registration_request(self) -> RecordDict:
        """What clients are told when they are asked who they are."""

    @abstractmethod
    def parse_registration(self, reply: Message) -> ClientInfo:
        """Who a client says that it is.

        Raises:
            FedfuseError, KeyError, TypeError, ValueError: for a client that cannot take part.
        """

    def initial(self) -> ArrayRecord:
        """The server's arrays before the first round, or the next one of a run that goes on."""
        return ArrayRecord()

    # --- Hooks, in the order of a round; a strategy overrides what it changes ---------------------

    def select_public_samples(self, server_round: int) -> None:
        """Select the public samples of a round, where rounds differ in them."""

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
        return self.requests(messages.EVALUATE, config)

    @abstractmethod
    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Write the clients' scores down; returns what they have in the mean."""

    @abstractmethod
    def evaluate_server(self, server_round: int) -> MetricRecord:
        """Score what the server has and write it down."""

    def measure_baselines(self, turn: int) -> None:
        """What the same would be without the federation; where the run config asks for it.

        Args:
            turn: the number of the last message before (``strategies.phases``), which clients know.
        """

    def state(self) -> dict[str, ndarray]:
        """What the strategy itself has learned, as flat arrays for the checkpoint."""
        return {}

    def load(self, state: Mapping[str, ndarray]) -> None:
        """Go on where ``state`` was taken."""

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
        self._grid, self._evaluate_fn = grid, evaluate_fn
        self._train_config = train_config or ConfigRecord()
        self._evaluate_config = evaluate_config or ConfigRecord()
        self.messenger = Messenger(grid, self.session.run, timeout)
        self._phases = (
            PiggybackRunner(self.messenger, self.request_context)
            if self.config.piggyback
            else PhaseRunner(self.messenger)
        )
        done = self._resume(initial_arrays, num_rounds)
        self._wait_for_nodes(grid, timeout)
        self.registry.register(grid, self.messenger, done)
        require(len(self.messenger.names), self.config.min_clients, messages.REGISTER)
        for number in range(done + 1, num_rounds + 1):
            if number > 0:
                self.registry.register(grid, self.messenger, number - 1)  # who has come since
                self._train(number)  # clients train, the server learns from their replies
                self._distill(number)  # clients learn from the server
            self._evaluate(number)  # both are scored; in round 0 before any training
            if self._phases.is_due(number):
                self._checkpoint(number)
        last = num_rounds
        if isinstance(self._phases, PiggybackRunner):
            last = num_rounds + 1  # a message that closes the last round
            if self._phases.waiting:
                self.registry.register(grid, self.messenger, num_rounds)
                self._phases.flush(last)
                self._checkpoint(last)
        if self.config.baselines:
            self.measure_baselines(last)
        return self._result

    def _train(self, server_round: int) -> None:
        """Clients train on private data; the server learns from what they send."""

        def configure() -> list[Message]:
            log.info("round %d: clients train on private data", server_round)
            self.select_public_samples(server_round)
            config = self._with_context(server_round, self._train_config)
            arrays = self._result.arrays
            return list(self.configure_train(server_round, arrays, config, self._grid))

        def aggregate(replies: ReplyStream) -> None:
            started = time.monotonic()
            arrays, metrics = self.aggregate_train(server_round, replies)
            deque(replies, maxlen=0)  # Replies that the strategy left out are written down too.
            seconds = time.monotonic() - started - replies.waited
            self.session.run.message(server_round, "server.aggregate", SERVER, seconds=seconds)
            if arrays is not None:
                self._result.arrays = arrays
            if metrics is not None:
                self._result.train_metrics_clientapp[server_round] = metrics

        minimum = self.config.min_clients
        self._phases.run(
            Phase(server_round, configure, aggregate, minimum=minimum, needs_replies=True)
        )

    def _distill(self, server_round: int) -> None:
        """Clients learn from the server, where the strategy sends them anything."""

        def configure() -> list[Message]:
            self.select_public_samples(server_round)
            config = self._with_context(server_round, self._train_config)
            arrays = self._result.arrays
            requests = list(self.configure_distill(server_round, arrays, config, self._grid))
            if requests:
                log.info("round %d: clients learn from the server", server_round)
            return requests

        def aggregate(replies: ReplyStream) -> None:
            self.aggregate_distill(server_round, self.messenger.sort(replies))

        minimum = self.config.min_clients
        self._phases.run(Phase(server_round, configure, aggregate, minimum=minimum))

    def _evaluate(self, server_round: int) -> None:
        """Clients score their models, the server meanwhile its own."""
        own: list[MetricRecord] = []

        def configure() -> list[Message]:
            config = self._with_context(server_round, self._evaluate_config)
            arrays = self._result.arrays
            return list(self.configure_evaluate(server_round, arrays, config, self._grid))

        def aggregate(replies: ReplyStream) -> None:
            metrics = self.aggregate_evaluate(server_round, self.messenger.sort(replies))
            if metrics is not None:
                self._result.evaluate_metrics_clientapp[server_round] = metrics
            evaluate, arrays = self._evaluate_fn, self._result.arrays
            given = evaluate(server_round, arrays) if evaluate else None
            self._result.evaluate_metrics_serverapp[server_round] = given or own[0]

        def meanwhile() -> None:
            own.append(self.evaluate_server(server_round))

        self._phases.run(Phase(server_round, configure, aggregate, meanwhile))

    def _checkpoint(self, server_round: int) -> None:
        """Save what is needed to go on after a round."""
        self.session.checkpoint(server_round, self.state(), result_facts(self._result))
        self.session.run.progress(checkpoint=server_round)

    def _resume(self, initial_arrays: ArrayRecord, num_rounds: int) -> int:
        """Restore the run that is to go on, if any.

        Returns:
            number of its last checkpoint, -1 for none.
        """
        self._result = Result(arrays=initial_arrays)
        kept = self.session.resume()
        if kept is None:
            return -1
        self.load(strip_prefix(kept.arrays, "strategy|"))
        self._result = restore_result(self.initial(), kept.facts["result"])
        if self.config.piggyback and kept.round <= num_rounds:  # had waited for the next message
            self._distill(kept.round)
            self._evaluate(kept.round)
        return kept.round

    def _with_context(self, server_round: int, config: ConfigRecord) -> ConfigRecord:
        """A request's config, with the run and round that it belongs to."""
        whole = ConfigRecord({**config})
        messages.pack_context(whole, self.request_context(server_round))
        return whole

    def request_context(self, server_round: int) -> messages.RequestContext:
        """What the requests of a round belong to."""
        run = self.session.run
        return messages.RequestContext(run.folder.name, run.id, server_round)

    def requests(
        self, kind: str, config: ConfigRecord, content: RecordDict | None = None
    ) -> list[Message]:
        """The same message to every registered client."""
        whole = RecordDict({**(content or {}), "config": config})
        return [Message(whole, node, kind) for node in self.messenger.names]

    def parse_replies(
        self, server_round: int, replies: Iterable[Message], parse_reply: Callable[[Message], T]
    ) -> Iterator[tuple[str, T]]:
        """Parse replies as they come; yields clients' names and what was parsed.

        Replies of another round, and those that ``parse_reply`` raises an error for, are refused
        and counted.
        """
        for reply in replies:
            try:
                messages.check_round(reply.content, server_round)
                parsed = parse_reply(reply)
            except (FedfuseError, KeyError, TypeError, ValueError) as error:
                metadata = reply.metadata
                self.messenger.refuse(
                    server_round, metadata.message_type, metadata.src_node_id, error
                )
                continue
            yield self.messenger.name(reply.metadata.src_node_id), parsed

    def _wait_for_nodes(self, grid: Grid, timeout: float) -> None:
        """The ServerApp may start before the nodes are there."""
        deadline = time.monotonic() + timeout
        while len(nodes := list(grid.get_node_ids())) < self.config.min_clients:
            if time.monotonic() > deadline:
                raise FedfuseError(
                    f"{len(nodes)} clients connected within {timeout:g} s; "
                    f"allowed: at least {self.config.min_clients} (min-clients)"
                )
            time.sleep(NODE_POLL_SECONDS)

"""What a strategy may override: the hooks of registration and of a round, in order.

They have Flower's names and signatures; the ``distill`` pair follows the ``train`` pair.
``ModelStrategy`` is the base of strategies whose server has a model of its own. ``FedMKT``
overrides all of a round's hooks, ``LLM2SLM`` and ``FedAvgLoRA`` the fewest.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy import ndarray

from fedfuse.config.run_config import RunConfig
from fedfuse.errors import FedfuseError
from fedfuse.flower import messages
from fedfuse.plugins import class_name
from fedfuse.simulation.data_fit import SplitFit
from fedfuse.simulation.memory_plan import Plan
from fedfuse.tracking.checkpoints import Checkpoint
from fedfuse.tracking.run_writer import RunWriter
from strategies.client_registry import ClientInfo, ClientRegistry
from strategies.messenger import Messenger
from strategies.participation import Participation

log = logging.getLogger(__name__)
T = TypeVar("T")


class RunState(Protocol):
    """The least that a strategy needs of the server's side: config and run folder."""

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


class StrategyHooks(Strategy):
    """The hooks and their default implementations.

    Args:
        server: config, run folder, and what else the strategy needs.

    Attributes:
        client: kind of client that answers: ``knowledge``, ``feddtpt``, your own class, or its
            name as ``module:Class``.
    """

    client: str | type = "knowledge"

    def __init__(self, server: RunState) -> None:
        self.server = server
        self.config = server.config
        self.registry = ClientRegistry(
            server.run, self.registration_request, self.parse_registration
        )
        self.participation = Participation(self.config)
        self.messenger: Messenger

    @staticmethod
    @abstractmethod
    def open(config: RunConfig) -> RunState:
        """Open the server's side of the run."""

    @classmethod
    def client_name(cls) -> str:
        """Name of the kind of client, as the run config carries it."""
        return class_name(cls.client)

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
    def fits(cls, config: RunConfig, clients: int) -> list[SplitFit]:
        """How the data fits the models, which must be built; empty where there is none to fit."""
        return []

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
        """Content of the request to register."""

    @abstractmethod
    def parse_registration(self, reply: Message) -> ClientInfo:
        """Parse a reply to a registration.

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
        """Ask for local training; ``config["reply"]`` says what to send back."""
        request = ConfigRecord({**config, "reply": "nothing"})
        return self.requests(messages.LOCAL, request, server_round=server_round)

    def while_clients_train(self, server_round: int) -> None:
        """Work that the server has before it needs their replies."""

    @abstractmethod
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Learn from the clients' replies; returns the server's new arrays and metrics."""

    def configure_distill(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the server's knowledge to the clients; without messages the phase is skipped."""
        return []

    def aggregate_distill(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Record what the clients learned."""
        return None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask for scores of the clients' models; in round 0, those that the first round asks."""
        return self.requests(messages.EVALUATE, config, server_round=max(server_round, 1))

    @abstractmethod
    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Record the clients' scores; returns their mean."""

    @abstractmethod
    def evaluate_server(self, server_round: int) -> MetricRecord:
        """Score the server's model or prompt and record it."""

    def measure_baselines(self, last: int) -> None:
        """Measure what the same would be without the federation, where the run config asks for it.

        Args:
            last: round number of the messages, which must not be below the clients' own.
        """

    def state(self) -> dict[str, ndarray]:
        """State of the strategy itself, as flat arrays for the checkpoint."""
        return {}

    def load(self, state: Mapping[str, ndarray]) -> None:
        """Go on where ``state`` was taken."""

    def summary(self) -> None:
        """Log what will run."""
        config = self.config
        log.info("%s, %d rounds, seed %d", type(self).__name__, config.rounds, config.seed)
        log.info("run folder: %s", self.server.run.folder)

    # --- For hooks ---

    def request_context(self, server_round: int) -> messages.RequestContext:
        """Run and round that a request belongs to."""
        run = self.server.run
        return messages.RequestContext(run.folder.name, run.id, server_round)

    def participants(self, server_round: int) -> dict[int, str]:
        """Names of the clients that take part in a round, by node; see ``Participation``."""
        names = self.messenger.names
        here = self.messenger.connected() if self.config.clients_per_round else set(names)
        available = {name for node, name in names.items() if node in here}
        chosen = set(self.participation.clients(server_round, list(names.values()), available))
        return {node: name for node, name in names.items() if name in chosen}

    def least_replies(self) -> int:
        """Replies that a round needs: ``min-clients``, or of all where a round asks fewer."""
        return min(self.config.min_clients, self.participation.size(len(self.messenger.names)))

    def requests(
        self,
        kind: str,
        config: ConfigRecord,
        content: RecordDict | None = None,
        *,
        server_round: int | None = None,
    ) -> list[Message]:
        """The same message to every client that takes part in a round, or to all without one."""
        whole = RecordDict({**(content or {}), "config": config})
        names = self.messenger.names
        nodes = names if server_round is None else self.participants(server_round)
        return [Message(whole, node, kind) for node in nodes]

    def parse_replies(
        self, server_round: int, replies: Iterable[Message], parse_reply: Callable[[Message], T]
    ) -> Iterator[tuple[str, T]]:
        """Parse replies as they come; yields clients' names and what was parsed.

        Replies of another round, and those that ``parse_reply`` raises an error for, are refused
        and counted.
        """
        for reply in replies:
            client = self.messenger.name(reply.metadata.src_node_id)
            try:
                messages.check_round(reply.content, server_round)
                parsed = parse_reply(reply)
            except (FedfuseError, KeyError, TypeError, ValueError) as error:
                self.messenger.refuse(server_round, reply.metadata.message_type, client, error)
                continue
            yield client, parsed

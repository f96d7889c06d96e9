"""The rounds of a run, from top to bottom: what every fedfuse strategy shares.

A strategy overrides hooks (``strategies.hooks``), not this.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fedfuse.errors import FedfuseError
from fedfuse.flower import messages
from fedfuse.tracking.checkpoints import strip_prefix
from fedfuse.tracking.run import SERVER
from strategies.hooks import StrategyHooks
from strategies.messenger import Messenger, ReplyStream, require
from strategies.phases import Phase, PhaseRunner
from strategies.piggyback import PiggybackRunner
from strategies.results import restore_result, result_facts

log = logging.getLogger(__name__)

FEDERATED = "federated"
ZERO_SHOT = "zero-shot"
NODE_POLL_SECONDS = 0.2
NODE_PATIENCE_SECONDS = 5.0  # until the log says for how many clients the server waits


class BaseStrategy(StrategyHooks):
    """Register once; then per round train, distill and evaluate."""

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
        self.messenger = Messenger(grid, self.server.run, timeout)
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
            # Who is not connected is not among them.
            here = len(self.participants(server_round))
            require(here, self.least_replies(), messages.LOCAL)
            self.select_public_samples(server_round)
            config = self._with_context(server_round, self._train_config)
            arrays = self._result.arrays
            return list(self.configure_train(server_round, arrays, config, self._grid))

        def aggregate(replies: ReplyStream) -> None:
            started = time.monotonic()
            arrays, metrics = self.aggregate_train(server_round, replies)
            deque(replies, maxlen=0)  # Replies that the strategy left out are written down too.
            seconds = time.monotonic() - started - replies.waited
            self.server.run.message(server_round, "server.aggregate", SERVER, seconds=seconds)
            if arrays is not None:
                self._result.arrays = arrays
            if metrics is not None:
                self._result.train_metrics_clientapp[server_round] = metrics

        def meanwhile() -> None:
            self.while_clients_train(server_round)

        minimum = self.config.min_clients
        self._phases.run(
            Phase(
                server_round, configure, aggregate, meanwhile, minimum=minimum, needs_replies=True
            )
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
        state = {**self.state(), **self.participation.state()}
        self.server.checkpoint(server_round, state, result_facts(self._result))
        self.server.run.progress(checkpoint=server_round)

    def _resume(self, initial_arrays: ArrayRecord, num_rounds: int) -> int:
        """Restore the run that is to go on, if any.

        Returns:
            number of its last checkpoint, -1 for none.
        """
        self._result = Result(arrays=initial_arrays)
        kept = self.server.resume()
        if kept is None:
            return -1
        state = strip_prefix(kept.arrays, "strategy|")
        self.participation.load(state)
        self.load(state)
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

    def _wait_for_nodes(self, grid: Grid, timeout: float) -> None:
        """The ServerApp may start before the nodes are there."""
        started, minimum, told = time.monotonic(), self.config.min_clients, -1
        while len(nodes := list(grid.get_node_ids())) < minimum:
            waited = time.monotonic() - started
            if waited > timeout:
                raise FedfuseError(
                    f"expected at least {minimum} clients (min-clients) to connect "
                    f"within {timeout:g} s, got {len(nodes)}"
                )
            if waited >= NODE_PATIENCE_SECONDS and len(nodes) != told:
                told = len(nodes)
                log.info("waiting for clients: %d of %d (min-clients) are connected", told, minimum)
            time.sleep(NODE_POLL_SECONDS)

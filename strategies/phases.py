"""The phases of a round, and which of them one message carries."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fedfuse.flower import messages
from strategies.message_round import ReplyStream
from strategies.server_state import SERVER
from strategies.steps import Step

if TYPE_CHECKING:
    from strategies.base import BaseStrategy

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rounds:
    """What a run consists of, in the hooks of a strategy.

    Attributes:
        strategy: whose hooks are called.
        grid: what they are given, as in Flower.
        result: what they are given of it, and what is found out.
        train_config: for requests to train and to distill.
        evaluate_config: for requests to evaluate.
        evaluate_fn: the caller's own measure of the server's arrays after a round.
    """

    strategy: BaseStrategy
    grid: Grid
    result: Result
    train_config: ConfigRecord
    evaluate_config: ConfigRecord
    evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None

    def first(self) -> int:
        """The number of the first turn."""
        return 1 if self.strategy.config.piggyback else 0

    def last(self, num_rounds: int) -> int:
        """The number of the last turn: with ``piggyback`` one that closes the last round."""
        return num_rounds + 1 if self.strategy.config.piggyback else num_rounds

    def turn(self, number: int, num_rounds: int) -> Iterator[list[Step]]:
        """What belongs to one checkpoint, a list for each message to the clients.

        A turn is a round. With ``piggyback`` it is what is left of a round and the training of the
        next, since only then must the server hear the clients before it can go on. The hooks are
        called in the same order either way.
        """
        if not self.strategy.config.piggyback:
            if number:
                yield [self.train(number)]
                yield from ([step] for step in self.distill(number))
            yield [self.evaluate(number)]
            return
        before = number - 1
        steps = [*(self.distill(before) if before else ()), self.evaluate(before)]
        yield [*steps, self.train(number)] if number <= num_rounds else steps

    def train(self, server_round: int) -> Step:
        """Clients train and tell; the server learns."""
        log.info("round %d: clients train on private data", server_round)
        strategy, result = self.strategy, self.result
        strategy.session.begin(server_round)
        config = self._about(server_round, self.train_config)
        requests = list(strategy.configure_train(server_round, result.arrays, config, self.grid))

        def take(replies: ReplyStream) -> None:
            started = time.monotonic()
            arrays, metrics = strategy.aggregate_train(server_round, replies)
            deque(replies, maxlen=0)  # Whatever a strategy leaves out, every client is heard.
            seconds = time.monotonic() - started - replies.waited
            strategy.session.run.message(server_round, "server.aggregate", SERVER, seconds=seconds)
            if arrays is not None:
                result.arrays = arrays
            if metrics is not None:
                result.train_metrics_clientapp[server_round] = metrics

        # A strategy may ask fewer clients than there are.
        minimum = min(strategy.config.min_clients, len(requests))
        return Step(server_round, requests, take, minimum=minimum)

    def distill(self, server_round: int) -> Iterator[Step]:
        """Clients learn from the server; nothing where the strategy has nothing to tell them."""
        strategy = self.strategy
        strategy.session.begin(server_round)
        config = self._about(server_round, self.train_config)
        requests = list(
            strategy.configure_distill(server_round, self.result.arrays, config, self.grid)
        )

        def take(replies: ReplyStream) -> None:
            strategy.aggregate_distill(server_round, self._by_name(replies))

        if requests:
            log.info("round %d: clients learn from the server", server_round)
            yield Step(server_round, requests, take, minimum=strategy.config.min_clients)

    def evaluate(self, server_round: int) -> Step:
        """Everybody scores what they have."""
        strategy, result = self.strategy, self.result
        config = self._about(server_round, self.evaluate_config)
        requests = list(strategy.configure_evaluate(server_round, result.arrays, config, self.grid))
        own: list[MetricRecord] = []

        def take(replies: ReplyStream) -> None:
            metrics = strategy.aggregate_evaluate(server_round, self._by_name(replies))
            if metrics is not None:
                result.evaluate_metrics_clientapp[server_round] = metrics
            given = self.evaluate_fn(server_round, result.arrays) if self.evaluate_fn else None
            result.evaluate_metrics_serverapp[server_round] = given or own[0]

        def meanwhile() -> None:
            own.append(strategy.evaluate_server(server_round))

        return Step(server_round, requests, take, meanwhile)

    def _about(self, server_round: int, config: ConfigRecord) -> ConfigRecord:
        """A request's config with what it belongs to."""
        about = ConfigRecord({**config})
        messages.pack_context(about, self.strategy.request_context(server_round))
        return about

    def _by_name(self, replies: ReplyStream) -> list[Message]:
        name = self.strategy.exchange.name
        return sorted(replies, key=lambda reply: name(reply.metadata.src_node_id))

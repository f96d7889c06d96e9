"""FedMKT that notes how long its rounds take and keeps what it was told."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from fedfuse.knowledge.record import Knowledge
from fedfuse.knowledge.storage import save
from strategies.fedmkt import FedMKT

ROUNDS, KNOWLEDGE = "rounds.json", "knowledge"


class Recorded(FedMKT):
    """Writes ``rounds.json``, the seconds of each round, and ``knowledge/CLIENT.bin``, its last."""

    def summary(self) -> None:
        """Make the folder."""
        super().summary()
        self._seconds: list[float] = []
        (self.server.run.folder / KNOWLEDGE).mkdir()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """A round begins."""
        self._started = time.monotonic()
        return super().configure_train(server_round, arrays, config, grid)

    def receive(self, reply: Message) -> Knowledge:
        """Keep what a client says."""
        knowledge = super().receive(reply)
        client = self.messenger.name(reply.metadata.src_node_id)
        save(self.server.run.folder / KNOWLEDGE / f"{client}.bin", knowledge)
        return knowledge

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """A round ends."""
        metrics = super().aggregate_evaluate(server_round, replies)
        if server_round:
            self._seconds.append(round(time.monotonic() - self._started, 2))
            (self.server.run.folder / ROUNDS).write_text(json.dumps(self._seconds))
        return metrics

"""LLM2SLM: the server's model stays as it is and teaches the clients; nothing flows up.

A baseline of FedMKT (arXiv 2406.02224), Section 4.
"""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from strategies.fedmkt import FedMKT
from strategies.model import ModelStrategy


class LLM2SLM(FedMKT):
    """FedMKT's way down, without its way up."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Train on private data; nothing is sent back."""
        return ModelStrategy.configure_train(self, server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The server learns nothing."""
        return ModelStrategy.aggregate_train(self, server_round, replies)

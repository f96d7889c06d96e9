"""FedAvgLoRA: average the clients' adapters; for clients that all have the server's architecture.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, arXiv 1602.05629, Algorithm 1, on LoRA weights; a baseline of FedMKT (arXiv
2406.02224), Section 4.

Differs from the paper: all clients take part in every round, and Adam instead of SGD trains them.
The factors A and B of the adapter are averaged each for itself, as is usual, although the mean of
products is not the product of means.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy import ndarray

from fedfuse.errors import FedfuseError
from fedfuse.flower import messages
from strategies.messenger import require
from strategies.model import ModelStrategy, mean_loss, take_loss

AdapterState = dict[str, ndarray]


class FedAvgLoRA(ModelStrategy):
    """The server's adapter is the weighted mean of the clients'."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the global adapter; every client trains it on its private data and sends it back."""
        request = ConfigRecord({**config, "reply": "adapter"})
        adapter = messages.arrays_to_record(self.session.local_model.adapter)
        return self.requests(messages.LOCAL, request, RecordDict({"adapter": adapter}))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average what came back, weighted by the number of private samples."""
        own = self.session.local_model.adapter

        def read(reply: Message) -> tuple[AdapterState, float, float]:
            adapter = messages.record_to_arrays(reply.content.array_records["adapter"])
            _check(adapter, own)
            number = messages.unpack_number(reply.content, "num-examples")
            if number <= 0:
                raise FedfuseError(f"metrics.num-examples is {number:g}; allowed: above 0")
            return adapter, number, take_loss(reply)

        found = dict(self.parse_replies(server_round, replies, read))
        require(len(found), self.config.min_clients, messages.LOCAL)
        # By name: sums of floats depend on their order, and no result on who was quicker.
        adapters, examples, losses = zip(*(found[name] for name in sorted(found)), strict=True)
        averaged = weighted_mean(adapters, examples)
        self.session.local_model.adapter = averaged
        return messages.arrays_to_record(averaged), mean_loss(losses)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Every client scores the global adapter."""
        requests = list(super().configure_evaluate(server_round, arrays, config, grid))
        for request in requests if server_round else []:
            adapter = self.session.local_model.adapter
            request.content["adapter"] = messages.arrays_to_record(adapter)
        return requests


def weighted_mean(adapters: Sequence[AdapterState], weights: Sequence[float]) -> AdapterState:
    """The mean of arrays by name.

    Args:
        adapters: the same names and shapes in each.
        weights: one each, not negative, not all zero.
    """
    shares = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    return {
        name: sum(
            share * adapter[name] for share, adapter in zip(shares, adapters, strict=True)
        ).astype(np.float32)
        for name in adapters[0]
    }


def _check(adapter: AdapterState, own: AdapterState) -> None:
    """Refuse an adapter that does not fit the server's."""
    differing = sorted(adapter.keys() ^ own.keys()) or [
        name for name in own if adapter[name].shape != own[name].shape
    ]
    if differing:
        raise FedfuseError(
            f"the adapter does not fit the server's: {differing[:3]}; "
            "fedavg-lora needs clients and server of one base model and one LoRA configuration"
        )
    broken = [name for name, values in adapter.items() if not np.isfinite(values).all()]
    if broken:
        raise FedfuseError(f"the adapter has values that are not finite: {broken[:3]}")

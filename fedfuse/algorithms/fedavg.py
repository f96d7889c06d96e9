"""FedAvg of LoRA adapters; for clients that all have the server's architecture.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, arXiv 1602.05629, Algorithm 1; a baseline of FedMKT (arXiv 2406.02224), Section 4.

Differs from the paper: all clients take part in every round, and AdamW instead of SGD trains them.
The factors A and B of an adapter are averaged each for itself, as is usual, although the mean of
products is not the product of means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy import ndarray

from fedfuse.algorithms.local_model import LocalModel
from fedfuse.config.training import TrainingConfig
from fedfuse.distillation.optimizer_state import TrainingState
from fedfuse.errors import FedfuseError
from fedfuse.models.causal_lm import AdapterState
from fedfuse.tokenizers.dataset import TokenizedDataset


def client_step(
    model: LocalModel,
    private: TokenizedDataset,
    training: TrainingConfig,
    *,
    seed: int,
    state: TrainingState | None = None,
    adapter: AdapterState | None = None,
) -> tuple[float, TrainingState]:
    """ClientUpdate: train on private data, from the global adapter or, without one, the own.

    Returns:
        final loss, nats per label row, and training state; the adapter is ``model.adapter``.
    """
    if adapter is not None:
        model.adapter = adapter
    return model.learn(private, training, seed=seed, state=state)


def server_step(clients: Mapping[str, tuple[AdapterState, float]]) -> AdapterState:
    """The next global adapter: the clients' mean, weighted by their numbers of private samples.

    Args:
        clients: adapter and number of samples by client.
    """
    # By name: sums of floats depend on their order.
    adapters, samples = zip(*(clients[name] for name in sorted(clients)), strict=True)
    return weighted_mean(adapters, samples)


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


def check_adapter(adapter: Mapping[str, ndarray], own: AdapterState) -> None:
    """Refuse an adapter that cannot be averaged with one's own.

    Raises:
        FedfuseError: naming arrays that are missing, of another shape, or not finite.
    """
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

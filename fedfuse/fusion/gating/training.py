"""The gates of all folds and one round of their training, side by side in one batch.

Kong et al. (Fusion-X), arXiv 2505.23844: ``L = gate loss + beta * CV^2``.

The gradient goes through the gating probabilities g before the threshold, in loss and importance.
Through the threshold only kept candidates would learn, and one that fell below it could never
return; so the threshold is applied when weights are given out.

Gates are small and their steps many: what a step costs is hardly more for ten of them at once than
for one. Their losses are added; none has a parameter in common with another, so each learns as it
would alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from numpy import ndarray
from torch import Tensor

from fedfuse.config.gate import GateConfig
from fedfuse.fusion.gating.features import build_features, neighbour_accuracy
from fedfuse.fusion.gating.networks import BatchedEquivariant, BatchedPerceptron, feedback_loss
from fedfuse.fusion.teacher_stats import StackedStats
from fedfuse.tokenizers.dataset import to_tensor

Gates: TypeAlias = BatchedPerceptron | BatchedEquivariant


@dataclass(frozen=True, slots=True)
class GateInputs:
    """A round's evidence for K gates: C candidates, N samples, T rows.

    Attributes:
        features: ``[K, C, N, F]``; only the neighbour accuracies differ between gates.
        usable: ``[C, N]`` whether a candidate says anything there.
        sample_of_row: ``[T]`` the sample whose weights each row gets.
        row_usable: ``[C, T]``.
        label_prob: ``[C, T]`` probability of the label.
        cross_entropy_to_student: ``[C, T]``.
        train: ``[K, T]`` rows that a gate may learn from.
        held_out: ``[K, T]`` rows that a gate weighs.
    """

    features: Float[Tensor, "gates candidates samples features"]
    usable: Bool[Tensor, "candidates samples"]
    sample_of_row: Int64[Tensor, " rows"]
    row_usable: Bool[Tensor, "candidates rows"]
    label_prob: Float[Tensor, "candidates rows"]
    cross_entropy_to_student: Float[Tensor, "candidates rows"]
    train: Bool[Tensor, "gates rows"]
    held_out: Bool[Tensor, "gates rows"]


def build_inputs(
    stats: StackedStats, config: GateConfig, train: Bool[ndarray, "gates samples"]
) -> GateInputs:
    """Evidence for gates of which each may look at the labels of its training samples.

    One that trains on all samples (no cross-fitting) weighs what it learned from.
    """
    owner = stats.sample_of_row
    if config.network == "perceptron":
        features = np.repeat(stats.label_likelihood[None, :, :, None], len(train), axis=0)
    else:
        names, accuracy = config.feature_names, None
        if "neighbour-accuracy" in names:
            accuracy = neighbour_accuracy(stats, train, config.neighbours)
        features = build_features(stats, names, accuracy, len(train))
    train_rows = train[:, owner]
    return GateInputs(
        features=to_tensor(np.ascontiguousarray(features.swapaxes(1, 2)), "cpu"),
        usable=_candidates_first(stats.available),
        sample_of_row=to_tensor(owner, "cpu"),
        row_usable=_candidates_first(stats.usable),
        label_prob=_candidates_first(np.exp(stats.label_logprob)),
        cross_entropy_to_student=_candidates_first(stats.cross_entropy_to_student),
        train=to_tensor(train_rows, "cpu"),
        held_out=to_tensor(~train_rows | train.all(axis=1, keepdims=True), "cpu"),
    )


def _candidates_first(
    values: Shaped[ndarray, "any candidates"],
) -> Shaped[Tensor, "candidates any"]:
    """One row for each candidate."""
    return to_tensor(np.ascontiguousarray(values.T), "cpu")


def new_gates(config: GateConfig, candidates: int, features: int, seed: int) -> Gates:
    """K untrained networks.

    Args:
        config: shape of the networks; K is the number of folds.
        candidates: C, for a network of fixed size.
        features: F.
        seed: of the first network's weights; the next one has the next seed.
    """
    seeds = range(seed, seed + config.folds)
    if config.network == "perceptron":
        return BatchedPerceptron(candidates, seeds)
    return BatchedEquivariant(features, config.width, seeds)


def train_gates(
    gates: Gates,
    optimizer: torch.optim.Optimizer,
    inputs: GateInputs,
    config: GateConfig,
    rng: np.random.Generator,
) -> None:
    """One round's steps; with many samples, each on the rows of a random part of them."""
    samples = inputs.usable.shape[1]
    everything = torch.arange(len(inputs.sample_of_row))
    for _ in range(config.steps):
        batch = everything
        if samples > config.batch_size:
            chosen = torch.zeros(samples, dtype=torch.bool)
            chosen[rng.choice(samples, config.batch_size, replace=False)] = True
            batch = everything[chosen[inputs.sample_of_row]]
        loss = batch_losses(gates, inputs, batch, config).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def batch_losses(
    gates: Gates, inputs: GateInputs, batch: Int64[Tensor, " rows"], config: GateConfig
) -> Float[Tensor, " gates"]:
    """``[K]`` gate loss and feedback loss of each gate, on the rows of a batch that it may see."""
    which, place = torch.unique(inputs.sample_of_row[batch], return_inverse=True)
    features = inputs.features.index_select(2, which)
    log_gate = gates(features, inputs.usable[:, which])  # [K, C, samples]
    train = inputs.train[:, batch].to(log_gate.dtype)  # [K, rows]
    each = gate_loss(log_gate.index_select(2, place), inputs, batch, config.loss)
    losses = (each * train).sum(1) / train.sum(1).clamp_min(1)
    # Rows of one sample are trained on together or not at all.
    train_samples = torch.zeros(len(train), len(which)).index_copy_(1, place, train)
    weights = log_gate.exp() * train_samples[:, None]
    return losses + config.feedback * feedback_loss(weights.mT)


def gate_loss(
    log_gate: Float[Tensor, "gates candidates rows"],
    inputs: GateInputs,
    rows: Int64[Tensor, " rows"],
    kind: str,
) -> Float[Tensor, "gates rows"]:
    """Loss of each row that a gate minimises beside the feedback loss, nats.

    ``labels``: ``-log sum_n w_n p_n(label)``. ``distillation`` (the paper's): the cross-entropy of
    the fused target and the learning model q, ``sum_n w_n CE(p_n, q)``, as cross-entropy is linear
    in the target. w is g over the candidates that say something on the row.
    """
    usable = inputs.row_usable[:, rows]
    weight = torch.softmax(log_gate.masked_fill(~usable, -1e9), dim=1)
    if kind == "distillation":
        return (weight * inputs.cross_entropy_to_student[:, rows]).sum(1)
    # No candidate gives a label less than exp(LEAST_LOGPROB), so their mixture does not either.
    return -(weight * inputs.label_prob[:, rows]).sum(1).log()

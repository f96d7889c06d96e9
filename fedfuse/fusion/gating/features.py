"""Features of the gate: one vector per candidate, on a scale that no other candidate changes.

Every feature is a difference from the learning model's own on the same sample, in natural
units. So a candidate's vector depends on itself and on the learning model alone, whoever else is
there, and a gate that was trained with four candidates can be given thirty.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from numpy import ndarray

from fedfuse.fusion.teacher_stats import StackedStats
from fedfuse.sparse import LEAST_LOGPROB

Features = Float32[ndarray, "gates samples candidates features"]
Accuracies = Float32[ndarray, "gates samples candidates two"]
# Samples at a time, where every one is compared with every other.
_SAMPLES = 512


def build_features(
    stats: StackedStats,
    names: Sequence[str],
    accuracy: Accuracies | None,
    gates: int,
) -> Features:
    """``[K, N, C, F]`` the candidates' vectors.

    Args:
        stats: about all candidates.
        names: features to build, of ``FEATURES``.
        accuracy: result of ``neighbour_accuracy``; needed for the feature of that name.
        gates: K.
    """
    columns: list[ndarray] = []  # [N, C] for all gates, or [K, N, C]
    for name in names:
        if name in ("entropy", "margin", "kept-mass"):
            values = getattr(stats, name.replace("-", "_"))
            columns.append(values - values[:, :1])
            continue
        if name == "context-loss":
            # The ratio, since what a byte costs depends on the text.
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = np.log(stats.context_loss / stats.context_loss[:, :1])
            found = [np.where(np.isfinite(ratio), ratio, 0)]
        elif name == "label-likelihood":
            found = [stats.label_likelihood - stats.label_likelihood[:, :1]]
        else:
            assert accuracy is not None
            found = [accuracy[..., part] - accuracy[:, :, :1, part] for part in range(2)]
        columns += found
    shape = (gates, stats.samples, stats.candidates)
    return np.stack([np.broadcast_to(c, shape) for c in columns], axis=3).astype(np.float32)


def neighbour_accuracy(
    stats: StackedStats, train: Bool[ndarray, "gates samples"], neighbours: int
) -> Accuracies:
    """How well each candidate did on the training samples that are most like each sample.

    Alike are samples whose pooled hidden states have the largest cosine, the mean over all samples
    subtracted. A sample is no neighbour of its own.

    Args:
        stats: with ``state``; without, every training sample is a neighbour of every other. A
            ``record`` is taken as it is, for every gate and both numbers.
        train: ``[K, N]`` samples whose labels each gate may look at.
        neighbours: number of neighbours, at least 1.

    Returns:
        ``[K, N, C, 2]`` over the neighbours, of the candidate's label probability per row: the mean
        of its logarithm, which punishes excluding what happens, and the logarithm of its mean,
        which a few wrong labels cannot spoil.
    """
    if stats.record is not None:
        return np.broadcast_to(stats.record[..., None], (len(train), *stats.record.shape, 2))
    logs = np.maximum(stats.per_sample(stats.label_logprob), LEAST_LOGPROB)  # [N, C]
    logs = np.where(stats.available, logs, LEAST_LOGPROB).astype(np.float64)
    both = np.stack([logs, np.exp(logs)], axis=2)  # [N, C, 2]
    samples = len(logs)
    state = None if stats.state is None else _directions(stats.state.astype(np.float64))
    # Among so many there are enough training samples, for every gate.
    depth = min(samples - 1, neighbours + samples - int(train.sum(1).min()))
    means = np.empty((len(train), samples, logs.shape[1], 2))
    for start in range(0, samples, _SAMPLES):
        queries = np.arange(start, min(start + _SAMPLES, samples))
        nearest = None if state is None else _nearest(state, queries, depth)
        for gate, may_see in enumerate(train):
            if nearest is None or may_see.sum() <= neighbours:
                others = may_see & (np.arange(samples) != queries[:, None])
                means[gate, queries] = _mean_of_all(others, both)
            else:
                chosen = may_see[nearest]
                chosen &= chosen.cumsum(1) <= neighbours
                means[gate, queries] = both[nearest[chosen].reshape(-1, neighbours)].mean(1)
    accuracy = np.empty(means.shape, dtype=np.float32)
    accuracy[..., 0], accuracy[..., 1] = means[..., 0], np.log(means[..., 1])
    return accuracy


def _nearest(
    state: Float64[ndarray, "samples width"], queries: Int64[ndarray, " queries"], depth: int
) -> Int64[ndarray, "queries depth"]:
    """Other samples of largest cosine, the nearest first."""
    distance = -(state[queries] @ state.T)
    distance[np.arange(len(queries)), queries] = np.inf
    among = np.argpartition(distance, depth, axis=1)[:, :depth]
    order = np.take_along_axis(distance, among, axis=1).argsort(axis=1)
    nearest: Int64[ndarray, "queries depth"] = np.take_along_axis(among, order, axis=1)
    return nearest


def _mean_of_all(
    others: Bool[ndarray, "queries samples"], values: Float64[ndarray, "samples candidates two"]
) -> Float64[ndarray, "queries candidates two"]:
    """Means over the other samples; the lowest values where there is none."""
    count = others.sum(1)[:, None, None]
    total = np.einsum("qn,nck->qck", others.astype(np.float64), values)
    lowest = np.array([LEAST_LOGPROB, np.exp(np.float64(LEAST_LOGPROB))])
    means: Float64[ndarray, "queries candidates two"]
    means = np.where(count > 0, total / np.maximum(count, 1), lowest)
    return means


def _directions(state: Float64[ndarray, "samples width"]) -> Float64[ndarray, "samples width"]:
    state = state - state.mean(0)
    unit: Float64[ndarray, "samples width"]
    unit = state / np.maximum(np.linalg.norm(state, axis=1, keepdims=True), 1e-12)
    return unit

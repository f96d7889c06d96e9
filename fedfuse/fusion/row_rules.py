"""One interface for all selectors: evidence about the candidates in, a weight per label row out.

A selector is called once a round with the ``StackedStats`` of C candidates, column 0 the learning
model itself, and returns ``[T, C]`` weights. A row of zeros means "no teacher here"; weight in
column 0 holds the model where it is. ``by_loss`` makes one of a rule over losses
(``fedfuse.fusion.rules``); ``LearnedGate`` learns; the others are what it is compared with.

AvgCE: Wan et al., "Knowledge Fusion of Large Language Models" (FuseLLM), arXiv 2401.10491. The
untrained gate is what the public code of Fusion-X (arXiv 2505.23844) does: a new network at every
use.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy import ndarray

from fedfuse.errors import FedfuseError
from fedfuse.fusion.gating.networks import BatchedPerceptron, dynamic_selection
from fedfuse.fusion.rules import Losses, Weights
from fedfuse.fusion.teacher_stats import StackedStats

RowWeights = Float32[ndarray, "rows candidates"]
Selector = Callable[[StackedStats], RowWeights]


def by_loss(rule: Callable[[Losses], Weights]) -> Selector:
    """A selector of a rule ``[N, C]`` losses -> ``[N, C]`` weights, such as ``dual_min_ce``."""

    def select(stats: StackedStats) -> RowWeights:
        weights = check_weights(rule(stats.loss), stats.loss.shape)
        return on_rows(weights, stats)

    return select


def avg_ce(stats: StackedStats) -> RowWeights:
    """FuseLLM's AvgCE: every candidate, the learning model too, by its score ``exp(-CE)``."""
    score = stats.label_likelihood
    total = score.sum(1, keepdims=True)
    return on_rows(score / np.where(total > 0, total, 1), stats)


def untrained_gate(seed: int, threshold: float) -> Selector:
    """The paper's perceptron with random weights, drawn anew at every call."""
    rng = np.random.default_rng(seed)

    def select(stats: StackedStats) -> RowWeights:
        gate = BatchedPerceptron(stats.candidates, [int(rng.integers(2**31))])
        with torch.no_grad():
            scores = torch.from_numpy(stats.label_likelihood.T)[None, :, :, None]
            log_gate = gate(scores, torch.from_numpy(stats.available.T))[0]
            weights = dynamic_selection(log_gate.mT.exp(), threshold).numpy()
        return on_rows(zero_if_only_self(weights), stats)

    return select


def oracle(column: Int64[ndarray, " samples"]) -> Selector:
    """For data whose source is known: the one right candidate of each sample, 0 for no teacher."""

    def select(stats: StackedStats) -> RowWeights:
        weights = np.zeros_like(stats.loss)
        weights[np.arange(len(column)), column] = 1
        return on_rows(zero_if_only_self(weights), stats)

    return select


def on_rows(weights: Weights, stats: StackedStats) -> RowWeights:
    """``[T, C]`` the weights of each row's sample."""
    return np.repeat(weights, np.diff(stats.offsets), axis=0)


def on_samples(weights: RowWeights, stats: StackedStats) -> Weights:
    """``[N, C]`` mean weights of each sample's rows, 0 where it has none: for reports."""
    count = np.maximum(np.diff(stats.offsets), 1)[:, None]
    running = np.zeros((len(weights) + 1, weights.shape[1]))
    np.cumsum(weights, axis=0, out=running[1:])
    mean: Weights = (np.diff(running[stats.offsets], axis=0) / count).astype(weights.dtype)
    return mean


def zero_if_only_self(weights: Weights) -> Weights:
    """The weights; all zero where nobody but the learning model is trusted on any row.

    The learning model is a candidate of the mixture like any other, as in Fusion-X: a row that
    trusts it alone is taught what the model says already. That holds it where it is while other
    rows are learned; by itself it would be no lesson.
    """
    return weights if weights[:, 1:].any() else np.zeros_like(weights)


def check_weights(weights: ndarray, shape: tuple[int, ...]) -> ndarray:
    """Refuse what is no weights.

    Raises:
        FedfuseError: for weights of another shape, negative or not finite.
    """
    if weights.shape != shape or not np.isfinite(weights).all() or (weights < 0).any():
        raise FedfuseError(
            f"the selector returned weights of shape {weights.shape}, minimum {weights.min()}; "
            f"allowed: shape {shape}, finite, not negative"
        )
    return weights

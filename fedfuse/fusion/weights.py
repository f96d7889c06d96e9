"""Weights that a rule gives to candidates: column 0 is the learning model, the others teachers."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from fedfuse.errors import check
from fedfuse.fusion.teacher_stats import StackedStats

Weights = Float32[ndarray, "samples candidates"]
RowWeights = Float32[ndarray, "rows candidates"]


def zero_if_only_self(weights: ndarray) -> ndarray:
    """The weights; all zero where nobody but the learning model is trusted on any row.

    The learning model is a candidate of the mixture like any other, as in Fusion-X: a row that
    trusts it alone is taught what the model says already. That holds it where it is while other
    rows are learned; by itself it teaches nothing.
    """
    return weights if weights[:, 1:].any() else np.zeros_like(weights)


def row_weights(weights: ndarray, stats: StackedStats) -> RowWeights:
    """Check what a rule returned, and give each row the weights of its sample.

    Args:
        weights: ``[T, C]``, or ``[N, C]``; where T equals N they are taken for rows'.
        stats: about C candidates on N samples with T label rows.

    Returns:
        ``[T, C]`` weights.

    Raises:
        FedfuseError: for weights of another shape, negative or not finite.
    """
    rows, samples = stats.usable.shape, stats.loss.shape
    good = weights.shape in (rows, samples) and np.isfinite(weights).all() and (weights >= 0).all()
    expected = f"finite weights of shape {samples} or {rows}, not negative"
    check("fusion rule", f"shape {weights.shape}, minimum {weights.min()}", expected, good)
    return weights if weights.shape == rows else stats.to_rows(weights)

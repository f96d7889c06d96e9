"""Selectors: whom to trust on which sample.

A selector maps the candidates' losses ``[N, C]`` to weights ``[N, C]``. Column 0 is the receiving
model itself; the others are its possible teachers. A row of zeros means "no teacher for this
sample".

FedMKT (arXiv 2406.02224), Algorithm 2 (DualMinCE).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

Losses = Float32[ndarray, "samples candidates"]
Weights = Float32[ndarray, "samples candidates"]


def dual_min_ce(losses: Losses) -> Weights:
    """FedMKT's DualMinCE: the teacher of smallest loss, if it beats the receiving model's own.

    Args:
        losses: ``[N, C]`` nats per byte, column 0 the receiving model's own.

    Returns:
        ``[N, C]`` one-hot rows, or zeros where no teacher is strictly better. Ties between teachers
        go to the first.
    """
    weights = np.zeros_like(losses)
    if losses.shape[1] < 2:
        return weights
    best = losses[:, 1:].argmin(1) + 1
    rows = np.arange(len(losses))
    weights[rows, best] = losses[rows, best] < losses[:, 0]
    return weights


def uniform(losses: Losses) -> Weights:
    """Every teacher equally, on every sample: a baseline."""
    weights = np.zeros_like(losses)
    if losses.shape[1] > 1:
        weights[:, 1:] = 1 / (losses.shape[1] - 1)
    return weights


def min_ce(losses: Losses) -> Weights:
    """FuseLLM's MinCE (arXiv 2401.10491): the teacher of smallest loss, even if the own is smaller.

    The first of equals; nobody where no teacher knows anything.
    """
    weights = np.zeros_like(losses)
    if losses.shape[1] < 2:
        return weights
    best = losses[:, 1:].argmin(1) + 1
    rows = np.arange(len(losses))
    weights[rows, best] = np.isfinite(losses[rows, best])
    return weights

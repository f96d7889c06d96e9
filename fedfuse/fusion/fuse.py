"""Weighted fusion of sparse distributions, without a dense tensor per candidate.

Fusion-X (arXiv 2505.23844), dynamic weighted fusion: ``p = sum_n w_n p_n``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray

from fedfuse.distillation.training import Teacher
from fedfuse.tokenization.projection import Projected

# Rows at a time: what many candidates need while they are merged stays small.
_ROWS = 512


def fuse(
    candidates: Sequence[Projected], row_weights: Float32[ndarray, "rows candidates"], k: int
) -> Teacher:
    """Mix aligned candidates row by row and keep the k largest entries; the rest is the tail.

    Args:
        candidates: C sparse distributions over one vocabulary and the same T label rows.
        row_weights: ``[T, C]`` weight of each candidate on each row; a row may sum to less than
            one.
        k: entries to keep.

    Returns:
        The teacher. Its row weight is the trust that could be used: the weights of the candidates
        that have an aligned row there, at most 1.
    """
    parts = [
        _fuse([_part(c, rows) for c in candidates], row_weights[rows], k)
        for rows in (slice(s, s + _ROWS) for s in range(0, max(1, len(row_weights)), _ROWS))
    ]
    return Teacher(
        *(
            np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(Teacher)
        )
    )


def _part(candidate: Projected, rows: slice) -> Projected:
    return replace(
        candidate,
        indices=candidate.indices[rows],
        logprobs=candidate.logprobs[rows],
        residual=candidate.residual[rows],
        weight=candidate.weight[rows],
    )


def _fuse(
    candidates: Sequence[Projected], row_weights: Float32[ndarray, "rows candidates"], k: int
) -> Teacher:
    """All of it for a few rows."""
    usable = np.stack([c.weight for c in candidates], axis=1) * row_weights  # [T, C]
    total = usable.sum(1)  # [T]
    share = usable / np.where(total > 0, total, 1)[:, None]
    indices = np.concatenate([c.indices for c in candidates], axis=1)  # [T, C*k]
    kept = [np.exp(c.logprobs.astype(np.float64)) for c in candidates]
    mass = np.concatenate([p * share[:, n, None] for n, p in enumerate(kept)], axis=1)
    tails = np.stack([np.exp(c.residual.astype(np.float64)) for c in candidates], axis=1)  # [T, C]
    merged_indices, merged_mass = merge_duplicates(indices, mass)
    order = np.argsort(-merged_mass, axis=1, kind="stable")
    along = np.arange(len(order))[:, None]
    top, rest = order[:, :k], order[:, k:]
    tail = (tails * share).sum(1) + merged_mass[along, rest].sum(1)
    with np.errstate(divide="ignore"):
        logprobs = np.log(merged_mass[along, top]).astype(np.float32)
        residual = np.log(tail).astype(np.float32)
    weight = np.minimum(total, 1).astype(np.float32)
    # An entry without mass (of a candidate that is not trusted here, say) is none that the teacher
    # kept: the slot repeats the largest, or the student would be taught that this token is
    # impossible.
    chosen = merged_indices[along, top]
    chosen = np.where(merged_mass[along, top] > 0, chosen, chosen[:, :1])
    return Teacher(chosen, logprobs, residual, weight)


def merge_duplicates(
    indices: Int64[ndarray, "rows m"], mass: Float64[ndarray, "rows m"]
) -> tuple[Int64[ndarray, "rows m"], Float64[ndarray, "rows m"]]:
    """Sum the mass of equal indices in each row; a slot so freed keeps its index, without mass."""
    order = np.argsort(indices, axis=1, kind="stable")
    along = np.arange(len(indices))[:, None]
    indices, mass = indices[along, order], mass[along, order]
    first = np.ones(indices.shape, dtype=bool)
    first[:, 1:] = indices[:, 1:] != indices[:, :-1]
    # Number the groups over the whole array, so that one bincount sums them all.
    group = first.ravel().cumsum() - 1
    sums = np.bincount(group, weights=mass.ravel())
    merged = np.where(first, sums[group].reshape(mass.shape), 0.0)
    return indices, merged

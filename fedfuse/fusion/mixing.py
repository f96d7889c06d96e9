"""Weighted fusion of sparse distributions, without a dense tensor per candidate.

Fusion-X (arXiv 2505.23844), dynamic weighted fusion: ``p = sum_n w_n p_n``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float32, Float64
from numpy import ndarray

from fedfuse.sparse import SparseDistribution, sum_duplicates

# Rows, and entries of all candidates, at a time: what is needed to merge them stays small, however
# many candidates there are.
_ROWS = 512
_ENTRIES = 2**16


class SparseRows(Protocol):
    """Sparse distributions on the T label rows of a student, read some rows at a time.

    A ``SparseDistribution`` holds them; ``BufferedRows`` has them in a file.
    """

    @property
    def k(self) -> int:
        """Number of entries per row."""

    def __getitem__(self, rows: slice) -> SparseDistribution:
        """Some of the rows."""


def mix(
    candidates: Sequence[SparseRows], row_weights: Float32[ndarray, "rows candidates"], k: int
) -> SparseDistribution:
    """Mix aligned candidates row by row and keep the k largest entries; the rest is the tail.

    Candidates are read a block of rows at a time, and only where they have weight. Sums go from
    the first candidate to the last, so blocks and candidates without weight change no bit of the
    result.

    Args:
        candidates: C sparse distributions over one vocabulary and the same T label rows.
        row_weights: ``[T, C]`` weight of each candidate on each row; a row may sum to less than
            one.
        k: entries to keep.

    Returns:
        The teacher. Its row weight is the trust that could be used: the weights of the candidates
        that have an aligned row there, at most 1.
    """
    rows, entries = len(row_weights), sum(c.k for c in candidates)
    kept = min(k, entries)
    teacher = SparseDistribution.empty(rows, kept, tail_logprob=-np.inf)
    step = max(1, min(_ROWS, _ENTRIES // max(1, entries)))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        trusted = np.flatnonzero(row_weights[part].any(axis=0)).tolist()
        if trusted:
            read = [candidates[c][part] for c in trusted]
            _fuse(read, row_weights[part, trusted], teacher, part)
    return teacher


def _fuse(
    candidates: Sequence[SparseDistribution],
    row_weights: Float32[ndarray, "rows candidates"],
    teacher: SparseDistribution,
    part: slice,
) -> None:
    """All of it for a few rows, which are filled in."""
    usable = np.stack([c.weight for c in candidates], axis=1) * row_weights  # [T, C]
    total = _sum(usable)  # [T]
    share = usable / np.where(total > 0, total, 1)[:, None]
    indices = np.concatenate([c.indices for c in candidates], axis=1)  # [T, C*k]
    kept = [np.exp(c.logprobs.astype(np.float64)) for c in candidates]
    mass = np.concatenate([p * share[:, n, None] for n, p in enumerate(kept)], axis=1)
    tails = np.stack(
        [np.exp(c.tail_logprob.astype(np.float64)) for c in candidates], axis=1
    )  # [T, C]
    merged_indices, merged_mass = sum_duplicates(indices, mass)
    k = min(teacher.indices.shape[1], indices.shape[1])
    order = np.argsort(-merged_mass, axis=1, kind="stable")
    along = np.arange(len(order))[:, None]
    top, rest = order[:, :k], order[:, k:]
    tail = _sum(np.column_stack([tails * share, merged_mass[along, rest]]))
    # An entry without mass (of a candidate that is not trusted here, say) is none that the teacher
    # kept: the slot repeats the largest, or the student would be taught that this token is
    # impossible.
    chosen, found = merged_indices[along, top], merged_mass[along, top]
    largest = np.where(found[:, :1] > 0, chosen[:, :1], 0)
    teacher.indices[part] = largest
    teacher.indices[part, :k] = np.where(found > 0, chosen, largest)
    with np.errstate(divide="ignore"):
        teacher.logprobs[part, :k] = np.log(found)
        teacher.tail_logprob[part] = np.log(tail)
    teacher.weight[part] = np.minimum(total, 1)


def _sum(values: Float32[ndarray, "rows m"] | Float64[ndarray, "rows m"]) -> ndarray:
    """Row sums from left to right: NumPy's own depend on how many zeros are added."""
    return np.cumsum(values, axis=1)[:, -1]

"""Which source row speaks of the same place in the text as a target row.

Rows are label rows: row t predicts token t+1, and ``LabelRows.prefix`` says how many bytes of the
text come before the predicted token. Two modes:

``boundary``: two rows are paired when both predict from the same bytes of the same text. Exact and
linear. Not in the paper.

``dtw``: FedMKT (arXiv 2406.02224), Section 3.2 and Appendix B: dynamic time warping of the two
token sequences with the edit distance between tokens as cost. A target row is matched when exactly
one source row falls to it and, given a vocabulary table, the source's token maps to the target's.

Differs from the paper: only label rows are aligned, by the tokens that they predict.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64
from numpy import ndarray
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

from fedfuse.errors import FedfuseError
from fedfuse.tokenization.rows import LabelRows
from fedfuse.tokenization.surface import Surfaces
from fedfuse.tokenization.vocabulary import VocabularyTable

UNMATCHED = -1
MODES = ("boundary", "dtw")


def align_rows(
    source: LabelRows,
    target: LabelRows,
    mode: str = "boundary",
    source_surfaces: Surfaces | None = None,
    target_surfaces: Surfaces | None = None,
    table: VocabularyTable | None = None,
) -> Int64[ndarray, " target_rows"]:
    """For each of the target's T_t label rows the source row that is paired with it, or -1.

    Args:
        source: label rows of the samples under the source tokenizer, T_s in all.
        target: label rows of the same samples under the target tokenizer.
        mode: "boundary" or "dtw".
        source_surfaces: bytes of the source's tokens; needed by "dtw".
        target_surfaces: bytes of the target's tokens; needed by "dtw".
        table: source to target vocabulary; if given, "dtw" keeps a pair only if the tokens agree.

    Returns:
        ``[T_t]`` indices into the rows of ``source``, in 0..T_s-1 or -1.

    Raises:
        FedfuseError: for an unknown mode, missing surfaces, or different numbers of samples.
    """
    if len(source.offsets) != len(target.offsets):
        raise FedfuseError(
            f"source rows are of {len(source.offsets) - 1} samples, target rows of "
            f"{len(target.offsets) - 1}; allowed: the same samples"
        )
    if mode == "boundary":
        return _by_boundary(source, target)
    if mode != "dtw":
        raise FedfuseError(f"alignment mode is {mode!r}; allowed: {', '.join(MODES)}")
    if source_surfaces is None or target_surfaces is None:
        raise FedfuseError("alignment mode dtw needs the surfaces of both tokenizers; one is None")
    matched = _by_warping(source, target, source_surfaces, target_surfaces)
    if table is not None:
        agree = table.target[source.token[matched]] == target.token
        matched = np.where(agree, matched, UNMATCHED)
    return matched


def _by_boundary(source: LabelRows, target: LabelRows) -> Int64[ndarray, " target_rows"]:
    """Same sample, same prefix.

    A token that covers no byte (SentencePiece's space put in front) shares its prefix with its
    successor; the last row of such a run is the one whose token moves on, on both sides.
    """
    matched = np.full(len(target.token), UNMATCHED, dtype=np.int64)
    span = 2 + max(source.prefix.max(initial=0), target.prefix.max(initial=0))
    source_row, source_key = _last_of_each_place(source, int(span))
    target_row, target_key = _last_of_each_place(target, int(span))
    _, in_source, in_target = np.intersect1d(
        source_key, target_key, assume_unique=True, return_indices=True
    )
    matched[target_row[in_target]] = source_row[in_source]
    return matched


def _last_of_each_place(
    rows: LabelRows, span: int
) -> tuple[Int64[ndarray, " places"], Int64[ndarray, " places"]]:
    """The last row at each known place, and the place as one number, ``sample * span + prefix``."""
    known = np.flatnonzero(rows.prefix >= 0)
    keys = rows.sample_of_row[known] * span + rows.prefix[known]
    unique, backwards = np.unique(keys[::-1], return_index=True)
    return known[::-1][backwards], unique


def _by_warping(
    source: LabelRows, target: LabelRows, source_surfaces: Surfaces, target_surfaces: Surfaces
) -> Int64[ndarray, " target_rows"]:
    """Dynamic time warping by sample; rows to which several source rows fall are unmatched."""
    matched = np.full(len(target.token), UNMATCHED, dtype=np.int64)
    for i in range(len(source.offsets) - 1):
        s0, s1 = source.offsets[i : i + 2]
        t0, t1 = target.offsets[i : i + 2]
        if s0 == s1 or t0 == t1:
            continue
        cost = process.cdist(
            [source_surfaces.bytes[token] for token in source.token[s0:s1]],
            [target_surfaces.bytes[token] for token in target.token[t0:t1]],
            scorer=Levenshtein.distance,
            dtype=np.int32,
        )
        path_source, path_target = warping_path(cost.astype(np.int64))
        single = np.bincount(path_target, minlength=t1 - t0) == 1
        once = single[path_target]
        matched[t0 + path_target[once]] = s0 + path_source[once]
    return matched


def warping_path(
    cost: Int64[ndarray, "n m"],
) -> tuple[Int64[ndarray, " steps"], Int64[ndarray, " steps"]]:
    """The cheapest path from (0, 0) to (n-1, m-1) that moves by one down, right, or both.

    ``total[i, j] = cost[i, j] + min(total[i-1, j-1], total[i-1, j], total[i, j-1])``. Of equally
    cheap predecessors the diagonal one is taken, then the one above.

    Args:
        cost: non-negative integers; n and m at least 1.

    Returns:
        Row and column of every step, in ascending order.
    """
    total = _total_cost(cost)
    i, j = cost.shape[0] - 1, cost.shape[1] - 1
    steps = [(i, j)]
    while i or j:
        if i and j and total[i - 1, j - 1] <= min(total[i - 1, j], total[i, j - 1]):
            i, j = i - 1, j - 1
        elif i and (not j or total[i - 1, j] <= total[i, j - 1]):
            i -= 1
        else:
            j -= 1
        steps.append((i, j))
    path = np.array(steps[::-1], dtype=np.int64)
    return path[:, 0], path[:, 1]


def _total_cost(cost: Int64[ndarray, "n m"]) -> Int64[ndarray, "n m"]:
    """Cost of the cheapest path to every cell, one row of cells at a time.

    Within row i a path comes down into column k <= j and then moves right to j. With C the running
    sum of the row's costs, ``total[i, j] = C[j] + min over k <= j of (down[k] - C[k-1])``, which is
    a running minimum.
    """
    running = cost.cumsum(axis=1)
    total = np.empty_like(running)
    total[0] = running[0]
    for i in range(1, len(cost)):
        down = total[i - 1].copy()
        down[1:] = np.minimum(down[1:], total[i - 1, :-1])
        before = running[i] - cost[i]
        total[i] = running[i] + np.minimum.accumulate(down - before)
    return total

"""Which source row speaks of the same place in the text as a target row.

Rows are label rows: row t predicts token t+1, and ``LabelRows.byte_start`` is the number of bytes
of the text before the predicted token. Three modes:

``events``: two rows are paired when both predict from the same bytes of the same text; several
rows of the source belong to one long target token (``num_source_tokens``), and one of its rows to
several short target tokens (``tokens_into``), as ``fedfuse.alignment.event_rows`` says. Not in the
paper.

``exact-boundary``: rows are paired at the same bytes alone, whatever the tokens that follow. Exact,
linear, and harmful where the source's tokens are the shorter ones. Not in the paper.

``dtw``: FedMKT (arXiv 2406.02224), Section 3.2 and Appendix B: dynamic time warping of the two
token sequences with the edit distance between tokens as cost. A target row is matched when exactly
one source row falls to it and, given a vocabulary table, the source's token maps to the target's.

Differs from the paper: only label rows are aligned, by the tokens that they predict.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

from fedfuse.alignment.vocabulary_map import VocabularyTable
from fedfuse.errors import FedfuseError
from fedfuse.tokenizers.label_rows import LabelRows
from fedfuse.tokenizers.token_bytes import VocabularyBytes

UNALIGNED = -1
MODES = ("events", "exact-boundary", "dtw")


@dataclass(frozen=True, slots=True)
class Alignment:
    """For each of the target's T_t label rows the source's rows that speak of the same place.

    Attributes:
        source_row: ``[T_t]`` the source's row, in 0..T_s-1; -1 for none.
        num_source_tokens: ``[T_t]`` number of source rows, from ``source_row`` on, that predict
            exactly the bytes of the target's token; 1 where the source's token is not the shorter.
        tokens_into: ``[T_t]`` number of target tokens before this one that the source's token
            covers; 0 where both rows predict from the same bytes.
    """

    source_row: Int64[ndarray, " target_rows"]
    num_source_tokens: Int64[ndarray, " target_rows"]
    tokens_into: Int64[ndarray, " target_rows"]


def one_to_one(source_row: Int64[ndarray, " target_rows"]) -> Alignment:
    """An alignment that pairs single rows."""
    return Alignment(source_row, np.ones_like(source_row), np.zeros_like(source_row))


def align_rows(
    source: LabelRows,
    target: LabelRows,
    mode: str = "exact-boundary",
    source_bytes: VocabularyBytes | None = None,
    target_bytes: VocabularyBytes | None = None,
    table: VocabularyTable | None = None,
    *,
    verbatim: Bool[ndarray, " source_rows"] | None = None,
) -> Alignment:
    """Pair the target's label rows with the source's.

    Args:
        source: label rows of the samples under the source tokenizer, T_s in all.
        target: label rows of the same samples under the target tokenizer.
        mode: "events", "exact-boundary" or "dtw".
        source_bytes: bytes of the source's tokens; needed by "dtw".
        target_bytes: bytes of the target's tokens; needed by "dtw".
        table: source to target vocabulary; if given, "dtw" keeps a pair only if the tokens agree.
        verbatim: ``[T_s]`` see ``verbatim_rows``; if given, "events" leaves out target rows that
            any other source row would teach: what it predicts is not what the text says.

    Raises:
        FedfuseError: for an unknown mode, missing token bytes, or different numbers of samples.
    """
    if len(source.offsets) != len(target.offsets):
        raise FedfuseError(
            f"alignment: expected rows of the same samples, got {len(source.offsets) - 1} samples "
            f"of the source and {len(target.offsets) - 1} of the target"
        )
    if mode == "exact-boundary":
        return one_to_one(_by_boundary(source, target))
    if mode == "events":
        nested = _nested(source, target)
        return nested if verbatim is None else _only_verbatim(nested, verbatim)
    if mode != "dtw":
        raise FedfuseError(f"alignment mode: expected {', '.join(MODES)}, got {mode!r}")
    if source_bytes is None or target_bytes is None:
        raise FedfuseError(
            "alignment mode dtw needs the token bytes of both tokenizers; one is None"
        )
    matched = _by_warping(source, target, source_bytes, target_bytes)
    if table is not None:
        agree = table.best[source.token[matched]] == target.token
        matched = np.where(agree, matched, UNALIGNED)
    return one_to_one(matched)


def _by_boundary(source: LabelRows, target: LabelRows) -> Int64[ndarray, " target_rows"]:
    """Same sample, same byte.

    A token that covers no byte (SentencePiece's space put in front) shares its place with its
    successor; the last row of such a run is the one whose token moves on, on both sides.
    """
    matched = np.full(len(target.token), UNALIGNED, dtype=np.int64)
    length = beyond_all_places(source, target)
    source_row, source_key = row_of_each_place(source, length, last=True)
    target_row, target_key = row_of_each_place(target, length, last=True)
    if len(source_key):
        found = np.minimum(np.searchsorted(source_key, target_key), len(source_key) - 1)
        equal = source_key[found] == target_key
        matched[target_row[equal]] = source_row[found[equal]]
    return matched


def _nested(source: LabelRows, target: LabelRows) -> Alignment:
    """Boundary pairs whose tokens nest, and the rows inside a source token that begins at a pair.

    Where tokens overlap without nesting, no sum over whole tokens says what comes next.
    """
    row = _by_boundary(source, target)
    num_source_tokens, tokens_into = np.ones_like(row), np.zeros_like(row)
    if not len(source.token):
        return Alignment(row, num_source_tokens, tokens_into)

    # A longer target token: it must end where some source token ends, the first of those in a run,
    # since tokens that cover no byte come after it.
    longer = np.flatnonzero(
        (row >= 0) & (target.byte_end > source.byte_end[row]) & (source.byte_end[row] >= 0)
    )
    length = beyond_all_places(source, target)
    known = np.flatnonzero(source.byte_end >= 0)
    ends = source.sample_of_row[known] * length + source.byte_end[known]
    wanted = target.sample_of_row[longer] * length + target.byte_end[longer]
    at = np.minimum(np.searchsorted(ends, wanted), len(known) - 1)
    nested = ends[at] == wanted
    num_source_tokens[longer] = known[at] - row[longer] + 1
    row[longer[~nested]], num_source_tokens[longer[~nested]] = UNALIGNED, 1

    # A longer source token: rows inside it, from the pair where it begins.
    number = np.arange(len(row))
    before = np.maximum.accumulate(np.where(row >= 0, number, 0))
    covering = row[before]
    inside = (row < 0) & (covering >= 0) & (target.byte_start >= 0)
    inside &= target.sample_of_row == target.sample_of_row[before]
    inside &= (target.byte_start < source.byte_end[covering]) & (
        target.byte_end <= source.byte_end[covering]
    )
    row[inside] = covering[inside]
    tokens_into[inside] = (number - before)[inside]
    return Alignment(row, num_source_tokens, tokens_into)


def _only_verbatim(found: Alignment, verbatim: Bool[ndarray, " source_rows"]) -> Alignment:
    """Without the target rows that a source row teaches which is not verbatim."""
    changed = np.concatenate([[0], np.cumsum(~verbatim)])
    row, tokens = found.source_row, found.num_source_tokens
    good = (row >= 0) & (changed[row + tokens] == changed[row])
    return Alignment(
        np.where(good, row, UNALIGNED),
        np.where(good, tokens, 1),
        np.where(good, found.tokens_into, 0),
    )


def beyond_all_places(source: LabelRows, target: LabelRows) -> int:
    """More than any place in any text, so that a sample and a place make one number."""
    places = (source.byte_start, source.byte_end, target.byte_start, target.byte_end)
    return 2 + max(int(place.max(initial=0)) for place in places)


def row_of_each_place(
    rows: LabelRows, length: int, *, last: bool
) -> tuple[Int64[ndarray, " places"], Int64[ndarray, " places"]]:
    """The first or last row at each known place, and ``sample * length + byte_start``, ascending.

    Args:
        rows: label rows.
        length: more than any place in a text.
        last: of the rows at one place, of which all but the last cover no byte, the last.
    """
    known = np.flatnonzero(rows.byte_start >= 0)
    keys = rows.sample_of_row[known] * length + rows.byte_start[known]
    new = np.ones(len(keys) + 1, dtype=bool)
    new[1:-1] = keys[1:] != keys[:-1]
    chosen = new[1:] if last else new[:-1]
    return known[chosen], keys[chosen]


def _by_warping(
    source: LabelRows,
    target: LabelRows,
    source_bytes: VocabularyBytes,
    target_bytes: VocabularyBytes,
) -> Int64[ndarray, " target_rows"]:
    """Dynamic time warping by sample; rows to which several source rows fall are unmatched."""
    matched = np.full(len(target.token), UNALIGNED, dtype=np.int64)
    for i in range(len(source.offsets) - 1):
        s0, s1 = source.offsets[i : i + 2]
        t0, t1 = target.offsets[i : i + 2]
        if s0 == s1 or t0 == t1:
            continue
        cost = process.cdist(
            [source_bytes.bytes[token] for token in source.token[s0:s1]],
            [target_bytes.bytes[token] for token in target.token[t0:t1]],
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

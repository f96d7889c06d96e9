"""Projection between tokens of different lengths, by the chain rule.

Alignment mode ``chain-rule`` (``fedfuse.alignment.positions``) leaves target rows that no single
source row answers as it is:

A target token that is several source tokens long (``num_source_tokens``). The source says "wor",
then, having read that, "k": the target's "work" has the product of the two probabilities. A likely
alternative at the source's second step, "m", stands for "worm", if that is a target token.

A target token inside a source token (``tokens_into``). The source said "workshop" and "worker" at
once; the target has read "work" and asks what follows. Of the source's candidates those remain that
begin with what was read, with their probabilities made to sum to one again; "shop" and "er" are
what the target spells next.

A target token that begins with a space which the text does not have, while the source's does not,
or the other way round (``space_shift``): the first word of a text, or a word after punctuation. The
source said "work"; the target's token there is " work".

Not in the papers: FedMKT throws the teacher away in the first two cases.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from numpy import ndarray

from fedfuse.alignment.positions import Alignment
from fedfuse.alignment.spelling import NO_TOKEN, Spelling
from fedfuse.sparse import SparseDistribution, safe_log, top_k
from fedfuse.tokenizers.label_rows import LabelRows


def spanning(
    teacher: SparseDistribution,
    label_logprob: Float32[ndarray, " source_rows"],
    source: LabelRows,
    first: Int64[ndarray, " rows"],
    target_token: Int64[ndarray, " rows"],
    spelling: Spelling,
    num_source_tokens: int,
    space_shift: Int64[ndarray, " rows"],
    k: int,
    duplicate_tokens: str,
) -> SparseDistribution:
    """Distributions of rows whose target tokens are each ``num_source_tokens`` source tokens long.

    Args:
        teacher: the source's distributions, on T_s rows.
        label_logprob: ``[T_s]`` log-probability of the source's label tokens.
        source: its label rows.
        first: ``[R]`` the source row of each one's first token.
        target_token: ``[R]`` the target token that the source's tokens make up.
        spelling: source tokens in terms of target tokens.
        num_source_tokens: at least 1.
        space_shift: ``[R]`` 1 where the target's token has a space in front that the source's has
            not, -1 where it is the other way round, else 0.
        k: entries to keep.
        duplicate_tokens: see ``top_k``.
    """
    rows = len(first)
    ids, logs = [target_token[:, None]], []
    read = np.zeros(rows)  # log-probability of the source's tokens so far
    front = np.zeros(rows, dtype=np.uint64)  # digest of their bytes
    tail = np.zeros(rows)
    for step in range(num_source_tokens):
        row = first + step
        label = source.token[row]
        entries, values = teacher.indices[row], teacher.logprobs[row].astype(np.float64)
        is_label = entries == label[:, None]
        if step == 0:
            found = spelling.pieces[entries, 0].astype(np.int64)
            other = space_shift != 0
            found[other] = spelling.token_of(
                spelling.with_space_shift(space_shift[other, None], entries[other])
            )
        else:
            found = spelling.token_of(spelling.joined(front[:, None], entries))
        values = np.where(is_label, -np.inf, values + read[:, None])
        lost = np.where(found == NO_TOKEN, np.exp(values), 0.0).sum(axis=1)
        # A label that was not kept is in the tail; it goes on to the next step instead.
        own = label_logprob[row].astype(np.float64)
        rest = np.exp(teacher.tail_logprob[row].astype(np.float64))
        rest -= np.where(is_label.any(axis=1), 0.0, np.exp(own))
        tail += lost + np.exp(read) * np.maximum(rest, 0.0)
        ids.append(found)
        logs.append(np.where(found == NO_TOKEN, -np.inf, values))
        read = read + own
        front = (
            spelling.joined(front, label) if step else spelling.with_space_shift(space_shift, label)
        )
    logprobs = np.concatenate([read[:, None], *logs], axis=1)
    known = np.ones(rows, dtype=bool)
    return _distribution(np.concatenate(ids, axis=1), logprobs, tail, known, k, duplicate_tokens)


def continuing(
    teacher: SparseDistribution,
    row: Int64[ndarray, " rows"],
    before: Int64[ndarray, "rows tokens_into"],
    spelling: Spelling,
    k: int,
    duplicate_tokens: str,
) -> SparseDistribution:
    """Distributions of rows whose target tokens are inside a source token.

    The share of mass outside the candidates is taken to be the same after ``before`` was read as
    it was at the source's row: nothing is known of it.

    Args:
        teacher: the source's distributions, on T_s rows.
        row: ``[R]`` the source row of the token that the target is inside.
        before: ``[R, j]`` the j target tokens already read of it.
        spelling: source tokens in terms of target tokens.
        k: entries to keep.
        duplicate_tokens: see ``top_k``.
    """
    tokens_into = before.shape[1]
    entries = teacher.indices[row]
    mass = np.exp(teacher.logprobs[row].astype(np.float64))
    goes_on = np.ones(entries.shape, dtype=bool)
    for place in range(tokens_into):
        goes_on &= spelling.pieces[entries, place] == before[:, place, None]
    mass[~goes_on] = 0.0
    following = spelling.pieces[entries, tokens_into].astype(np.int64)
    total = mass.sum(axis=1)
    usable = total > 0
    outside = np.exp(teacher.tail_logprob[row].astype(np.float64))
    share = mass * ((1.0 - outside) / np.where(usable, total, 1.0))[:, None]
    ended = following == NO_TOKEN
    tail = outside + np.where(ended, share, 0.0).sum(axis=1)
    share[ended] = 0.0
    ids = np.where(share > 0, following, NO_TOKEN)
    known = usable & (share > 0).any(axis=1)
    return _distribution(ids, safe_log(share), tail, known, k, duplicate_tokens)


def rows_by(
    values: Int64[ndarray, " rows"], smallest: int
) -> list[tuple[int, Int64[ndarray, " some"]]]:
    """The rows at which ``values`` has each value of at least ``smallest``."""
    chosen = np.flatnonzero(values >= smallest)
    order = chosen[np.argsort(values[chosen], kind="stable")]
    found, starts = np.unique(values[order], return_index=True)
    return list(zip(found.tolist(), np.split(order, starts[1:]), strict=True)) if len(order) else []


def space_shifts(
    source: LabelRows, target: LabelRows, alignment: Alignment, spelling: Spelling
) -> Int64[ndarray, " target_rows"]:
    """``[T_t]`` 1 where only the target's token begins with a space that the text does not have, -1
    where only the source's does, else 0.
    """
    paired = np.flatnonzero((alignment.source_row >= 0) & (alignment.tokens_into == 0))
    row = alignment.source_row[paired]
    # A token with a space of its own in front is one byte longer than what it covers.
    here = spelling.target_spaced[target.token[paired]]
    there = spelling.source_spaced[source.token[row]]
    extra_here = here == target.byte_end[paired] - target.byte_start[paired] + 1
    extra_there = there == source.byte_end[row] - source.byte_start[row] + 1
    known = (target.byte_end[paired] >= 0) & (source.byte_end[row] >= 0)
    result = np.zeros(len(target.token), dtype=np.int64)
    result[paired] = np.where(known, extra_here.astype(np.int64) - extra_there, 0)
    return result


def merged_rows(
    teacher: SparseDistribution,
    label_logprob: Float32[ndarray, " source_rows"],
    source: LabelRows,
    target: LabelRows,
    alignment: Alignment,
    spelling: Spelling,
    k: int,
    duplicate_tokens: str,
) -> list[tuple[Int64[ndarray, " some"], SparseDistribution]]:
    """The target rows that no single source row answers, and their distributions."""
    result = []
    space_shift = space_shifts(source, target, alignment, spelling)
    several = (alignment.num_source_tokens > 1) | (space_shift != 0)
    for number, rows in rows_by(np.where(several, alignment.num_source_tokens, 0), 1):
        first, token, shift = alignment.source_row[rows], target.token[rows], space_shift[rows]
        own = teacher, label_logprob, source
        found = spanning(*own, first, token, spelling, number, shift, k, duplicate_tokens)
        result.append((rows, found))
    for tokens_into, rows in rows_by(alignment.tokens_into, 1):
        if tokens_into >= spelling.pieces.shape[1]:
            break  # further inside a token than its spelling is known
        before = target.token[rows[:, None] + np.arange(-tokens_into, 0)]
        row = alignment.source_row[rows]
        found = continuing(teacher, row, before, spelling, k, duplicate_tokens)
        result.append((rows, found))
    return result


def _distribution(
    ids: Int64[ndarray, "rows c"],
    logprobs: Float64[ndarray, "rows c"],
    tail: Float64[ndarray, " rows"],
    known: Bool[ndarray, " rows"],
    k: int,
    duplicate_tokens: str,
) -> SparseDistribution:
    """Rows with the k most likely of their candidates, and the probability outside them."""
    indices, logs, lost = top_k(ids, logprobs, k, duplicate_tokens)
    tail_logprob = safe_log(tail + lost).astype(np.float32)
    return SparseDistribution(indices, logs, tail_logprob, known.astype(np.float32))

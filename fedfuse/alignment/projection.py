"""Carry sparse next-token distributions from the source's vocabulary and rows to the target's.

FedMKT (arXiv 2406.02224), Section 3.2 and Appendix B: at a matched target position each of the
source's top-K entries goes to the target id that the vocabulary table gives, and the first (the
largest) to reach an id wins; an unmatched position gets a one-hot distribution on its own token.

Differs from the paper: by default the probabilities of entries that reach one token are summed,
and unaligned rows carry no weight (``duplicate_tokens="first"``, ``unaligned_positions="one-hot"``
are the paper's rule). What is lost under "first" goes to the tail, so a row's probabilities sum to
one either way. One-hot is on the token that the row predicts.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from fedfuse.alignment.positions import Alignment
from fedfuse.alignment.vocabulary_map import VocabularyTable
from fedfuse.errors import check
from fedfuse.sparse import DUPLICATE_RULES, SparseDistribution, safe_log, top_k
from fedfuse.tokenizers.label_rows import LabelRows

UNALIGNED_RULES = ("skip", "one-hot")
# Rows at a time: what is in work stays in the processor's cache.
_ROWS = 4096


def project(
    teacher: SparseDistribution,
    table: VocabularyTable,
    alignment: Alignment,
    target: LabelRows,
    *,
    duplicate_tokens: str = "sum",
    unaligned_positions: str = "skip",
) -> SparseDistribution:
    """Project a teacher's knowledge onto a student's rows.

    Args:
        teacher: its distributions on T_s label rows of its own.
        table: teacher's vocabulary to student's.
        alignment: which of the teacher's rows speak of each of the student's (``align_rows``).
        target: the student's label rows.
        duplicate_tokens: what happens to entries that reach the same target id: "sum" or "first".
        unaligned_positions: what a row without a teacher's row gets: "skip" (nothing) or "one-hot".

    Raises:
        FedfuseError: for an unknown rule, an alignment of mode "events", or rows or ids out of
            range.
    """
    check(
        "duplicate_tokens",
        duplicate_tokens,
        " or ".join(DUPLICATE_RULES),
        duplicate_tokens in DUPLICATE_RULES,
    )
    check(
        "unaligned_positions",
        unaligned_positions,
        " or ".join(UNALIGNED_RULES),
        unaligned_positions in UNALIGNED_RULES,
    )
    rows, k = len(target.token), max(teacher.k, 1)
    paired = alignment.source_row
    check("source_row", paired.shape, (rows,), paired.shape == (rows,))
    _in_range("source_row", paired, -1, teacher.num_rows)
    _in_range("teacher.indices", teacher.indices, 0, len(table.target))
    single = (alignment.num_source_tokens == 1) & (alignment.tokens_into == 0)
    check("alignment", "rows of several tokens", "pairs of single rows", bool(single.all()))

    result = SparseDistribution.empty(rows, k, tail_logprob=0.0)
    share = None
    if table.target.shape[1] > 1:
        with np.errstate(divide="ignore"):
            share = np.log(table.weight)
    matched = np.flatnonzero(paired >= 0)
    parts = [matched[start : start + _ROWS] for start in range(0, len(matched), _ROWS)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy lets go of the interpreter meanwhile
        list(
            pool.map(
                lambda part: _project_single(
                    teacher, table.target, share, paired[part], part, duplicate_tokens, result
                ),
                parts,
            )
        )
    if unaligned_positions == "one-hot":
        alone = result.weight == 0
        result.indices[alone, 0] = target.token[alone]
        result.logprobs[alone, 0] = 0.0
        result.tail_logprob[alone] = -np.inf
        result.weight[:] = 1.0
    return result


def _project_single(
    teacher: SparseDistribution,
    goal: Int64[ndarray, "vocab m"],
    share: Float32[ndarray, "vocab m"] | None,
    teacher_row: Int64[ndarray, " part"],
    part: Int64[ndarray, " part"],
    duplicate_tokens: str,
    result: SparseDistribution,
) -> None:
    """Rows that a single row of the teacher answers."""
    entries, logs = teacher.indices[teacher_row], teacher.logprobs[teacher_row]
    ids = goal[entries].reshape(len(part), -1)
    if share is not None:
        logs = (logs[:, :, None] + share[entries]).reshape(ids.shape)
    k = result.indices.shape[1]
    result.indices[part], result.logprobs[part], lost = top_k(ids, logs, k, duplicate_tokens)
    tail_logprob = teacher.tail_logprob[teacher_row]
    if lost.any():
        grown = np.logaddexp(tail_logprob.astype(np.float64), safe_log(lost))
        tail_logprob = np.where(lost > 0, grown, tail_logprob)
    result.tail_logprob[part] = tail_logprob
    result.weight[part] = 1.0


def _in_range(name: str, values: Int64[ndarray, " ..."], low: int, stop: int) -> None:
    if values.size:
        found = (int(values.min()), int(values.max()))
        check(name, found, f"{low}..{stop - 1}", found[0] >= low and found[1] < stop)

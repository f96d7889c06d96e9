"""Carry sparse next-token distributions from the source's vocabulary and rows to the target's.

FedMKT (arXiv 2406.02224), Section 3.2 and Appendix B: at a matched target position each of the
source's top-K entries goes to the target id that the vocabulary table gives, and the first (the
largest) to reach an id wins; an unmatched position gets a one-hot distribution on its own token.

Differs from the paper: by default the mass of entries that collide is summed, and unmatched rows
carry no weight (``collisions="first"``, ``unmatched="one-hot"`` are the paper's rule). Mass that is
lost under "first" goes to the residual, so a row's mass is one either way. One-hot is on the token
that the row predicts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray

from fedfuse.errors import FedfuseError
from fedfuse.knowledge.record import Knowledge
from fedfuse.tokenization.rows import LabelRows
from fedfuse.tokenization.vocabulary import VocabularyTable

COLLISIONS = ("sum", "first")
UNMATCHED_RULES = ("skip", "one-hot")


@dataclass(frozen=True, slots=True)
class Projected:
    """A teacher's distributions on the T_t label rows of a student. Logarithms are natural.

    Attributes:
        indices: ``[T_t, k]`` token ids in the student's vocabulary; 0 in unused slots.
        logprobs: ``[T_t, k]`` log-probabilities, descending; -inf in unused slots.
        residual: ``[T_t]`` log of the mass outside the k entries; -inf for none, 0 without teacher.
        weight: ``[T_t]`` 1 where the row has a teacher, else 0.
        tokenizer: fingerprint of the student's tokenizer.
    """

    indices: Int64[ndarray, "rows k"]
    logprobs: Float32[ndarray, "rows k"]
    residual: Float32[ndarray, " rows"]
    weight: Float32[ndarray, " rows"]
    tokenizer: str


def project(
    knowledge: Knowledge,
    table: VocabularyTable,
    source_row: Int64[ndarray, " rows"],
    target: LabelRows,
    *,
    collisions: str = "sum",
    unmatched: str = "skip",
    target_fingerprint: str,
) -> Projected:
    """Project a teacher's knowledge onto a student's rows.

    Args:
        knowledge: the teacher's, on T_s rows of its own.
        table: teacher's vocabulary to student's.
        source_row: ``[T_t]`` teacher's row for each of the student's, -1 for none (``align_rows``).
        target: the student's label rows.
        collisions: what happens to entries that reach the same target id: "sum" or "first".
        unmatched: what a row without a teacher's row gets: "skip" (nothing) or "one-hot".
        target_fingerprint: of the student's tokenizer.

    Raises:
        FedfuseError: for an unknown rule, or rows or ids out of range.
    """
    _check("collisions", collisions, " or ".join(COLLISIONS), collisions in COLLISIONS)
    _check("unmatched", unmatched, " or ".join(UNMATCHED_RULES), unmatched in UNMATCHED_RULES)
    rows, k = len(target.token), max(knowledge.k, 1)
    _check("source_row", source_row.shape, (rows,), source_row.shape == (rows,))
    _in_range("source_row", source_row, -1, knowledge.rows)
    _in_range("knowledge.indices", knowledge.indices, 0, len(table.target))

    indices = np.zeros((rows, k), dtype=np.int64)
    logprobs = np.full((rows, k), -np.inf, dtype=np.float32)
    residual = np.zeros(rows, dtype=np.float32)
    matched = source_row >= 0
    teacher = source_row[matched]
    if knowledge.k:
        ids, logs, lost = _collide(
            table.target[knowledge.indices[teacher]], knowledge.logprobs[teacher], collisions
        )
        indices[matched], logprobs[matched] = ids, logs
        own = knowledge.residual[teacher].astype(np.float64)
        residual[matched] = np.where(lost > 0, np.logaddexp(own, _log(lost)), own)
    else:
        residual[matched] = knowledge.residual[teacher]
    weight = matched.astype(np.float32)
    if unmatched == "one-hot":
        indices[~matched, 0] = target.token[~matched]
        logprobs[~matched, 0] = 0.0
        residual[~matched] = -np.inf
        weight[:] = 1.0
    return Projected(indices, logprobs, residual, weight, target_fingerprint)


def _collide(
    ids: Int64[ndarray, "rows k"],
    logprobs: Float32[ndarray, "rows k"],
    collisions: str,
) -> tuple[Int64[ndarray, "rows k"], Float32[ndarray, "rows k"], Float64[ndarray, " rows"]]:
    """Merge entries of a row that share an id, all rows at once.

    Returns:
        Ids and log-probabilities, descending, merged slots unused; and the mass lost in each row.
    """
    rows, k = ids.shape
    # A stable sort by id keeps the largest entry first among equals.
    order = np.argsort(ids, axis=1, kind="stable")
    by_id = np.take_along_axis(ids, order, axis=1)
    values = np.take_along_axis(logprobs, order, axis=1).astype(np.float64)
    first = np.ones((rows, k), dtype=bool)
    first[:, 1:] = by_id[:, 1:] != by_id[:, :-1]
    group = first.ravel().cumsum().reshape(rows, k) - 1
    leader = values[first]  # [groups] log-probability of each group's largest entry
    lost = np.zeros(rows)
    if collisions == "sum":
        # Relative to the largest, so that a group of one keeps its value to the last bit.
        safe = np.where(np.isneginf(leader), 0.0, leader)
        share = np.exp(values - safe[group])
        total = np.bincount(group.ravel(), weights=share.ravel())
        merged = leader + np.log(np.maximum(total, 1.0))
    else:
        merged = leader
        lost = np.where(first, 0.0, np.exp(values)).sum(axis=1)
    sorted_logs = np.full((rows, k), -np.inf)
    sorted_logs[first] = merged
    logs, back = np.empty_like(sorted_logs), np.empty_like(by_id)
    np.put_along_axis(logs, order, sorted_logs, axis=1)  # back where the largest entry stood
    np.put_along_axis(back, order, by_id, axis=1)
    descending = np.argsort(-logs, axis=1, kind="stable")
    logs = np.take_along_axis(logs, descending, axis=1).astype(np.float32)
    back = np.where(np.isneginf(logs), 0, np.take_along_axis(back, descending, axis=1))
    return back, logs, lost


def _log(mass: Float64[ndarray, " rows"]) -> Float64[ndarray, " rows"]:
    """Logarithm with -inf for no mass, without a warning."""
    result = np.full(len(mass), -np.inf)
    np.log(mass, out=result, where=mass > 0)
    return result


def _in_range(name: str, values: Int64[ndarray, " ..."], low: int, stop: int) -> None:
    if values.size:
        found = (int(values.min()), int(values.max()))
        _check(name, found, f"{low}..{stop - 1}", found[0] >= low and found[1] < stop)


def _check(name: str, found: object, allowed: object, good: bool) -> None:
    if not good:
        raise FedfuseError(f"projection: {name} is {found!r}; allowed: {allowed}")

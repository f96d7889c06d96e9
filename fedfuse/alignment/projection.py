"""Carry sparse next-token distributions from the source's vocabulary and rows to the target's.

FedMKT (arXiv 2406.02224), Section 3.2 and Appendix B: at a matched target position each of the
source's top-K entries goes to the target id that the vocabulary table gives, and the first (the
largest) to reach an id wins; an unmatched position gets a one-hot distribution on its own token.

Differs from the paper: by default the mass of entries that collide is summed, and unmatched rows
carry no weight (``collisions="first"``, ``unmatched="one-hot"`` are the paper's rule). Mass that is
lost under "first" goes to the tail, so a row's mass is one either way. One-hot is on the token
that the row predicts.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray

from fedfuse.alignment.chain_rule import Candidates, merged_rows
from fedfuse.alignment.duplicates import RULES, sum_duplicates
from fedfuse.alignment.positions import Alignment
from fedfuse.alignment.spelling import Spelling
from fedfuse.alignment.vocabulary_map import VocabularyTable
from fedfuse.errors import FedfuseError
from fedfuse.knowledge.record import Knowledge
from fedfuse.tokenizers.label_rows import LabelRows

UNMATCHED_RULES = ("skip", "one-hot")
# Rows at a time: what is in work stays in the processor's cache.
_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Projected:
    """A teacher's distributions on the T_t label rows of a student. Logarithms are natural.

    Attributes:
        indices: ``[T_t, k]`` token ids in the student's vocabulary; 0 in unused slots.
        logprobs: ``[T_t, k]`` log-probabilities, descending; -inf in unused slots.
        tail_logprob: ``[T_t]`` log of the mass outside the k entries; -inf for none, 0 where
            nobody teaches.
        weight: ``[T_t]`` 1 where the row has a teacher, else 0.
        tokenizer: fingerprint of the student's tokenizer.
    """

    indices: Int64[ndarray, "rows k"]
    logprobs: Float32[ndarray, "rows k"]
    tail_logprob: Float32[ndarray, " rows"]
    weight: Float32[ndarray, " rows"]
    tokenizer: str

    @property
    def k(self) -> int:
        """Entries per row."""
        return int(self.indices.shape[1])

    def rows(self, part: slice) -> Projected:
        """Some of the rows."""
        return replace(
            self,
            indices=self.indices[part],
            logprobs=self.logprobs[part],
            tail_logprob=self.tail_logprob[part],
            weight=self.weight[part],
        )


def project(
    knowledge: Knowledge,
    table: VocabularyTable,
    alignment: Alignment,
    target: LabelRows,
    *,
    source: LabelRows | None = None,
    spelling: Spelling | None = None,
    collisions: str = "sum",
    unmatched: str = "skip",
    target_fingerprint: str,
) -> Projected:
    """Project a teacher's knowledge onto a student's rows.

    Args:
        knowledge: the teacher's, on T_s rows of its own.
        table: teacher's vocabulary to student's.
        alignment: which of the teacher's rows speak of each of the student's (``align_rows``).
        target: the student's label rows.
        source: the teacher's label rows; needed with ``spelling``.
        spelling: teacher's tokens in the student's (``spell``); needed for alignments of mode
            "merge", for the rows that no single row of the teacher answers.
        collisions: what happens to entries that reach the same target id: "sum" or "first".
        unmatched: what a row without a teacher's row gets: "skip" (nothing) or "one-hot".
        target_fingerprint: of the student's tokenizer.

    Raises:
        FedfuseError: for an unknown rule, rows or ids out of range, or a merged alignment without
            spelling.
    """
    _check("collisions", collisions, " or ".join(RULES), collisions in RULES)
    _check("unmatched", unmatched, " or ".join(UNMATCHED_RULES), unmatched in UNMATCHED_RULES)
    rows, k = len(target.token), max(knowledge.k, 1)
    paired = alignment.source_row
    _check("source_row", paired.shape, (rows,), paired.shape == (rows,))
    _in_range("source_row", paired, -1, knowledge.rows)
    _in_range("knowledge.indices", knowledge.indices, 0, len(table.target))
    single = (alignment.span == 1) & (alignment.seen == 0)
    if spelling is None or source is None:
        _check("spelling", None, "given for a merged alignment", bool(single.all()))

    result = Projected(
        indices=np.zeros((rows, k), dtype=np.int64),
        logprobs=np.full((rows, k), -np.inf, dtype=np.float32),
        tail_logprob=np.zeros(rows, dtype=np.float32),
        weight=np.zeros(rows, dtype=np.float32),
        tokenizer=target_fingerprint,
    )
    share = None
    if table.target.shape[1] > 1:
        with np.errstate(divide="ignore"):
            share = np.log(table.weight)
    matched = np.flatnonzero(single & (paired >= 0))
    parts = [matched[start : start + _ROWS] for start in range(0, len(matched), _ROWS)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy lets go of the interpreter meanwhile
        list(
            pool.map(
                lambda part: _project_single(
                    knowledge, table.target, share, paired[part], part, collisions, result
                ),
                parts,
            )
        )
    if spelling is not None and source is not None:
        for part, candidates in merged_rows(knowledge, source, target, alignment, spelling):
            _fill(result, part, candidates, collisions)
    if unmatched == "one-hot":
        alone = result.weight == 0
        result.indices[alone, 0] = target.token[alone]
        result.logprobs[alone, 0] = 0.0
        result.tail_logprob[alone] = -np.inf
        result.weight[:] = 1.0
    return result


def _project_single(
    knowledge: Knowledge,
    goal: Int64[ndarray, "vocab m"],
    share: Float32[ndarray, "vocab m"] | None,
    teacher: Int64[ndarray, " part"],
    part: Int64[ndarray, " part"],
    collisions: str,
    result: Projected,
) -> None:
    """Rows that a single row of the teacher answers."""
    entries, logs = knowledge.indices[teacher], knowledge.logprobs[teacher]
    ids = goal[entries].reshape(len(part), -1)
    if share is not None:
        logs = (logs[:, :, None] + share[entries]).reshape(ids.shape)
    k = result.indices.shape[1]
    result.indices[part], result.logprobs[part], lost = sum_duplicates(ids, logs, k, collisions)
    tail_logprob = knowledge.tail_logprob[teacher]
    if lost.any():
        grown = np.logaddexp(tail_logprob.astype(np.float64), _log(lost))
        tail_logprob = np.where(lost > 0, grown, tail_logprob)
    result.tail_logprob[part] = tail_logprob
    result.weight[part] = 1.0


def _fill(
    result: Projected, part: Int64[ndarray, " part"], said: Candidates, collisions: str
) -> None:
    """Rows whose candidates were put together from several rows or tokens."""
    use = said.usable
    part = part[use]
    k = result.indices.shape[1]
    ids, logs, lost = sum_duplicates(said.ids[use], said.logprobs[use], k, collisions)
    result.indices[part], result.logprobs[part] = ids, logs
    result.tail_logprob[part] = _log(said.tail_logprob[use] + lost)
    result.weight[part] = 1.0


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

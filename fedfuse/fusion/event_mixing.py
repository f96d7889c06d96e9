"""Fusion of candidates of which some have other tokens than the learning model.

Fusion-X (arXiv 2505.23844) mixes distributions over one vocabulary. Candidates over events
(``fedfuse.events``) are mixed where they have one tokenizer, whose events are those of one table;
those of different tokenizers have no classes in common, and each keeps its own, and its weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, cast

import numpy as np
from jaxtyping import Float32, Int32
from numpy import ndarray

from fedfuse.alignment.event_rows import merge_events
from fedfuse.events import EventDistribution, TeacherTargets, stack_events
from fedfuse.fusion.mixing import SparseRows, mix
from fedfuse.sparse import SparseDistribution, safe_log

# Rows at a time: what is needed to merge them stays small, however many candidates there are.
_ROWS = 512


class EventRows(Protocol):
    """Event distributions on the T label rows of a student, read some rows at a time.

    An ``EventDistribution`` holds them; ``BufferedEvents`` has them in a file.
    """

    @property
    def orders(self) -> Int32[ndarray, "orders vocab"]:
        """Permutations of the student's tokens; one object for all candidates of a tokenizer."""

    @property
    def k(self) -> int:
        """Number of events per row."""

    def __getitem__(self, rows: slice) -> EventDistribution:
        """Some of the rows."""


AlignedRows = SparseRows | EventRows


def fuse_rows(
    candidates: Sequence[AlignedRows], row_weights: Float32[ndarray, "rows candidates"], k: int
) -> SparseDistribution | TeacherTargets:
    """Fuse candidates over tokens and over events.

    Args:
        candidates: C candidates on the same T label rows, one at least of them over tokens.
        row_weights: ``[T, C]`` weight of each candidate on each row.
        k: entries to keep of each mixture.

    Returns:
        The mixture over tokens; with candidates over events, that and a mixture for each of their
        tokenizers. Weights of a row that sum to more than one are scaled down to it.
    """
    over_tokens = [c for c, one in enumerate(candidates) if not hasattr(one, "orders")]
    by_tokenizer: dict[int, list[int]] = {}
    for c, one in enumerate(candidates):
        if c not in over_tokens:
            by_tokenizer.setdefault(id(cast(EventRows, one).orders), []).append(c)
    mixed = [cast(SparseRows, candidates[c]) for c in over_tokens]
    tokens = mix(mixed, row_weights[:, over_tokens], k)
    if not by_tokenizer:
        return tokens
    groups = [
        mix_events([cast(EventRows, candidates[c]) for c in group], row_weights[:, group], k)
        for group in by_tokenizer.values()
    ]
    scale = 1 / np.maximum(tokens.weight + sum(group.weight for group in groups), 1)
    parts = []
    for group in groups:
        rows = np.flatnonzero(group.weight)
        parts.append((rows, replace(group, weight=group.weight * scale)[rows]))
    tokens = replace(tokens, weight=tokens.weight * scale)
    return TeacherTargets(tokens, stack_events(parts, len(row_weights)))


def mix_events(
    candidates: Sequence[EventRows], row_weights: Float32[ndarray, "rows candidates"], k: int
) -> EventDistribution:
    """Mix candidates of one tokenizer row by row, and keep the k likeliest events.

    Args:
        candidates: C event distributions in the same permutations, on the same T label rows.
        row_weights: ``[T, C]`` weight of each candidate on each row.
        k: events to keep; those of a single candidate are all kept.

    Returns:
        The mixture; its weight is the sum of the weights that could be used.
    """
    num_rows, single = len(row_weights), len(candidates) == 1
    kept = candidates[0].k if single else min(k, sum(c.k for c in candidates))
    result = EventDistribution.empty(candidates[0].orders, num_rows, kept)
    for start in range(0, num_rows, _ROWS):
        part = slice(start, start + _ROWS)
        trusted = np.flatnonzero(row_weights[part].any(axis=0)).tolist()
        if single and trusted:
            one = candidates[0][part]
            result.fill(part, replace(one, weight=one.weight * row_weights[part, 0]))
        elif trusted:
            read = [candidates[c][part] for c in trusted]
            result.fill(part, _mix(read, row_weights[part, trusted], kept))
    return result


def _mix(
    candidates: Sequence[EventDistribution],
    row_weights: Float32[ndarray, "rows candidates"],
    k: int,
) -> EventDistribution:
    """The same of a few rows, all in memory."""
    usable = np.stack([c.weight for c in candidates], axis=1) * row_weights  # [T, C]
    total = usable.sum(axis=1)
    share = usable / np.where(total > 0, total, 1)[:, None]
    mass = [
        np.exp(c.logprobs.astype(np.float64)) * share[:, n, None] for n, c in enumerate(candidates)
    ]
    start, stop, merged = merge_events(
        np.concatenate([c.start for c in candidates], axis=1).astype(np.int64),
        np.concatenate([c.stop for c in candidates], axis=1).astype(np.int64),
        np.concatenate(mass, axis=1),
    )
    best = np.argsort(-merged, axis=1, kind="stable")[:, :k]
    start, stop, merged = (np.take_along_axis(x, best, axis=1) for x in (start, stop, merged))
    used = merged > 0
    chunk_mass = np.zeros(len(total))
    for n, c in enumerate(candidates):
        likelihood = np.exp(c.chunk_logprob.astype(np.float64))
        chunk_mass += np.where(c.chunk_rows > 0, share[:, n] * likelihood, 0)
    chunk_rows = np.max([c.chunk_rows for c in candidates], axis=0)
    return EventDistribution(
        candidates[0].orders,
        order=np.max([c.order for c in candidates], axis=0),
        start=np.where(used, start, 0).astype(np.int32),
        stop=np.where(used, stop, 0).astype(np.int32),
        logprobs=safe_log(merged).astype(np.float32),
        tail_logprob=safe_log(np.maximum(1 - merged.sum(axis=1), 0)).astype(np.float32),
        weight=total,
        chunk_rows=chunk_rows,
        chunk_logprob=np.where(chunk_rows > 0, safe_log(chunk_mass), 0).astype(np.float32),
    )

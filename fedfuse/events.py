"""Next-token distributions over events: sets of the student's tokens that a teacher's token means.

Student and teacher stand at the same place of a text. A teacher's token u is the event "the text
goes on with something whose spelling in the teacher's tokens begins with u"; a student's token
belongs to it if its bytes are spelled so. So it is the student's distribution that is projected,
by sums, and never the teacher's. With student tokens ordered by their spelling
(``fedfuse.alignment.event_table``) every event is a range of that order.

Where tokens overlap so that no token of one side ends where one of the other's does, there is one
event more: that the text goes on as it does, to the next place where both end
(``fedfuse.alignment.chunks``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Float32, Int32, Int64
from numpy import ndarray

from fedfuse.sparse import SparseDistribution

BY_EVENT = ("start", "stop", "logprobs")


@dataclass(frozen=True, slots=True)
class EventDistribution:
    """Distributions of T label rows over disjoint events. Logarithms are natural.

    Attributes:
        orders: ``[O, V]`` student token ids, each row a permutation of the vocabulary.
        order: ``[T]`` the permutation that a row's ranges are in.
        start: ``[T, k]`` first place of each event in the row's permutation.
        stop: ``[T, k]`` place behind its last; ``start`` in unused slots.
        logprobs: ``[T, k]`` log-probabilities of the events, descending; -inf in unused slots.
        tail_logprob: ``[T]`` log of the probability outside the k events; -inf for none.
        weight: ``[T]`` in [0, 1], 0 where nothing is known of the row.
        chunk_rows: ``[T]`` rows of the chunk that begins at this row and that the teacher has a
            likelihood of; 0 for none.
        chunk_logprob: ``[T]`` log-probability of its text; 0 where there is none.
    """

    orders: Int32[ndarray, "orders vocab"]
    order: Int32[ndarray, " rows"]
    start: Int32[ndarray, "rows k"]
    stop: Int32[ndarray, "rows k"]
    logprobs: Float32[ndarray, "rows k"]
    tail_logprob: Float32[ndarray, " rows"]
    weight: Float32[ndarray, " rows"]
    chunk_rows: Int32[ndarray, " rows"]
    chunk_logprob: Float32[ndarray, " rows"]

    @classmethod
    def empty(
        cls, orders: Int32[ndarray, "orders vocab"], num_rows: int, k: int
    ) -> EventDistribution:
        """Rows of which nothing is known, to be filled in."""
        return cls(
            orders,
            order=np.zeros(num_rows, dtype=np.int32),
            start=np.zeros((num_rows, k), dtype=np.int32),
            stop=np.zeros((num_rows, k), dtype=np.int32),
            logprobs=np.full((num_rows, k), -np.inf, dtype=np.float32),
            tail_logprob=np.zeros(num_rows, dtype=np.float32),
            weight=np.zeros(num_rows, dtype=np.float32),
            chunk_rows=np.zeros(num_rows, dtype=np.int32),
            chunk_logprob=np.zeros(num_rows, dtype=np.float32),
        )

    def columns(self) -> dict[str, ndarray]:
        """What is there for each row, by name: ``[T]``, or ``[T, k]`` for those of ``BY_EVENT``."""
        names = [field.name for field in fields(self) if field.name != "orders"]
        return {name: getattr(self, name) for name in names}

    def fill(self, rows: slice | Int64[ndarray, " some"], found: EventDistribution) -> None:
        """Put other rows, of the same permutations and at most as many events, into these."""
        for name, values in found.columns().items():
            if name in BY_EVENT:
                getattr(self, name)[rows, : found.k] = values
            else:
                getattr(self, name)[rows] = values

    @property
    def num_rows(self) -> int:
        """Number of label rows T."""
        return len(self.tail_logprob)

    @property
    def k(self) -> int:
        """Number of events per row."""
        return int(self.start.shape[1])

    def __getitem__(self, rows: slice | Int64[ndarray, " some"]) -> EventDistribution:
        """Some of the rows."""
        return replace(self, **{name: values[rows] for name, values in self.columns().items()})

    def without_tail(self) -> EventDistribution:
        """The same, with the events taken for all there is."""
        return replace(self, tail_logprob=np.full_like(self.tail_logprob, -np.inf))

    def places(self, tokens: Int64[ndarray, "rows m"]) -> Int64[ndarray, "rows m"]:
        """``[T, m]`` the places of some tokens of each row in the row's permutation."""
        place = np.empty(self.orders.shape, dtype=np.int64)
        along = np.arange(self.orders.shape[1])
        for order, place_of in zip(self.orders, place, strict=True):
            place_of[order] = along
        found: Int64[ndarray, "rows m"] = place[self.order[:, None], tokens]
        return found


@dataclass(frozen=True, slots=True)
class EventTargets:
    """Event distributions that teach R label rows: none, one or several a row.

    Attributes:
        offsets: ``[R+1]`` row r is taught by ``distribution[offsets[r]:offsets[r+1]]``.
        distribution: one row for each teacher of each label row; its weight is the trust in it.
    """

    offsets: Int64[ndarray, " rows_plus_1"]
    distribution: EventDistribution

    def __getitem__(self, rows: Int64[ndarray, " some"]) -> EventTargets:
        """Some of the label rows."""
        count = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], count.cumsum()])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], count)
        teachers = np.repeat(self.offsets[rows], count) + within
        return EventTargets(offsets, self.distribution[teachers])


@dataclass(frozen=True, slots=True)
class TeacherTargets:
    """What teaches R label rows, where some teachers have other tokens than the student.

    Attributes:
        tokens: teachers that have the student's tokens, mixed.
        events: the others.
    """

    tokens: SparseDistribution
    events: EventTargets

    @property
    def self_weight(self) -> Float32[ndarray, " samples"] | None:
        """``[N]`` trust of the student in itself."""
        return self.tokens.self_weight

    def with_self_weight(self, self_weight: Float32[ndarray, " samples"]) -> TeacherTargets:
        """The same, fused for a model with this trust in itself."""
        return replace(self, tokens=self.tokens.with_self_weight(self_weight))

    def without_tail(self) -> TeacherTargets:
        """The same, with kept entries and events taken for all there is."""
        events = replace(self.events, distribution=self.events.distribution.without_tail())
        return TeacherTargets(self.tokens.without_tail(), events)

    def __getitem__(self, rows: Int64[ndarray, " some"]) -> TeacherTargets:
        """Some of the label rows."""
        return TeacherTargets(self.tokens[rows], self.events[rows])


def stack_events(
    parts: Sequence[tuple[Int64[ndarray, " some"], EventDistribution]], num_rows: int
) -> EventTargets:
    """Targets of ``num_rows`` label rows, from distributions and the rows that each teaches."""
    row = np.concatenate([rows for rows, _ in parts])
    known: dict[int, int] = {}
    orders: list[ndarray] = []
    k = max(part.k for _, part in parts)
    columns: dict[str, list[ndarray]] = {}
    for _, part in parts:
        if id(part.orders) not in known:
            known[id(part.orders)] = sum(map(len, orders))
            orders.append(part.orders)
        wide = EventDistribution.empty(part.orders, part.num_rows, k)
        wide.fill(slice(None), part)
        wide.order[:] += known[id(part.orders)]
        for name, values in wide.columns().items():
            columns.setdefault(name, []).append(values)
    by_row = np.argsort(row, kind="stable")
    offsets = np.searchsorted(row[by_row], np.arange(num_rows + 1))
    whole = EventDistribution(
        np.concatenate(orders), **{name: np.concatenate(v) for name, v in columns.items()}
    )
    return EventTargets(offsets, whole[by_row])

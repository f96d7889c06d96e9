"""A teacher's distributions on a student's label rows, over events of the student's tokens.

Where both stand at the same place of the text (``Alignment.tokens_into`` is 0), each entry of the
teacher's row is the event of the student tokens whose spelling begins with it. Where the student's
label is several of the teacher's tokens (``num_source_tokens``), the chain rule follows the
teacher's rows along the label: an entry of the second row is the event of the student tokens whose
spelling begins with the first label token and then the entry, and its probability is multiplied by
that of what was read. An entry with which no student token goes on says that the student's token
ends before it: it is the event of the token that was read, unless the student may have a longer one
for what follows. An entry that is longer than any student token goes to the first token of its own
spelling in the student's tokens; events that meet are one.

Where the student stands inside a teacher's token (``tokens_into``), those of the teacher's entries
remain that begin with what the student has read, and each is the event of its next student token.

Probability that no event can take (entries without a spelling, unknown tokens, entries beyond the k
largest) goes to the tail. Where tokens overlap without nesting, the likelihood of a chunk of the
text stands for them (``chunk_likelihoods``). Not in the papers.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int32, Int64, Shaped
from numpy import ndarray

from fedfuse.alignment.chunks import Chunks
from fedfuse.alignment.event_table import EventTable
from fedfuse.alignment.positions import Alignment
from fedfuse.alignment.spelling import LONGEST, NO_TOKEN
from fedfuse.events import EventDistribution
from fedfuse.sparse import SparseDistribution, safe_log
from fedfuse.tokenizers.label_rows import LabelRows

# Rows at a time: what is in work stays in the processor's cache.
_ROWS = 4096


@dataclass(frozen=True, slots=True)
class PlaceTables:
    """Which events a pair of tokenizers has at each of the student's rows.

    Attributes:
        tables: one for each space shift that some row has.
        table_of_row: ``[T_t]`` number of the table of a row.
        orders: ``[len(tables), V]`` their orders of the student's tokens.
    """

    tables: list[EventTable]
    table_of_row: Int32[ndarray, " target_rows"]
    orders: Int32[ndarray, "tables vocab"]

    @classmethod
    def of_rows(
        cls, space_shift: Int64[ndarray, " target_rows"], table: Callable[[int], EventTable]
    ) -> PlaceTables:
        """Tables for the space shifts of rows, of a pair's ``event_table`` by space shift."""
        shifts, table_of_row = np.unique(space_shift, return_inverse=True)
        tables = [table(shift) for shift in shifts.tolist() or [0]]
        orders = np.stack([table.order for table in tables])
        return cls(tables, table_of_row.astype(np.int32), orders)


def event_distribution(
    teacher: SparseDistribution,
    label_logprob: Float32[ndarray, " source_rows"],
    source: LabelRows,
    target: LabelRows,
    alignment: Alignment,
    tables: PlaceTables,
) -> EventDistribution:
    """Project a teacher's knowledge onto events at a student's rows.

    Args:
        teacher: distributions on the T_s label rows of the teacher.
        label_logprob: ``[T_s]`` log-probability of the teacher's label tokens.
        source: the teacher's label rows.
        target: the student's T_t label rows.
        alignment: of mode "events".
        tables: the pair's events at each of the student's rows.

    Returns:
        Distributions of T_t rows with at most as many events as the teacher has entries, or one.
    """
    result = EventDistribution.empty(tables.orders, len(target.token), max(teacher.k, 1))

    def project(number: int, into: bool, tokens: int, part: Int64[ndarray, " part"]) -> None:
        events, row = tables.tables[number], alignment.source_row[part]
        if into:
            read = target.token[part[:, None] + np.arange(-tokens, 1)]
            found = _inside(teacher, source, row, read, events)
        else:
            label = target.token[part]
            found = _along_label(teacher, label_logprob, source, row, label, events, tokens)
        _fill(result, part, number, *found)

    parts = []
    for number, events in enumerate(tables.tables):
        here = (alignment.source_row >= 0) & (tables.table_of_row == number)
        here &= ~np.isin(target.token, list(events.special))
        along = here & (alignment.tokens_into == 0)
        for into, tokens_of_row in (
            (False, np.where(along, alignment.num_source_tokens, 0)),
            (True, np.where(here, alignment.tokens_into, 0)),
        ):
            for tokens, rows in _groups(tokens_of_row):
                parts += [(number, into, tokens, part) for part in _parts(rows)]
    # NumPy lets go of the interpreter meanwhile; torch knows this process's share of the cores.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(lambda part: project(*part), parts))
    return result


def chunk_likelihoods(
    into: EventDistribution,
    label_logprob: Float32[ndarray, " source_rows"],
    chunks: Chunks,
) -> EventDistribution:
    """Let a teacher teach its likelihoods of chunks, beside what it teaches already.

    Args:
        into: distributions on the student's T_t label rows; not changed.
        label_logprob: ``[T_s]`` log-probability of the teacher's label tokens.
        chunks: of the teacher's rows and the student's.
    """
    first, nats = chunks.target_start, np.append(0.0, np.cumsum(label_logprob, dtype=np.float64))
    rows, logprob, weight = into.chunk_rows.copy(), into.chunk_logprob.copy(), into.weight.copy()
    rows[first] = chunks.target_stop - first
    logprob[first] = nats[chunks.source_stop] - nats[chunks.source_start]
    weight[first] = 1.0
    return replace(into, chunk_rows=rows, chunk_logprob=logprob, weight=weight)


def space_shifts(
    source: LabelRows,
    target: LabelRows,
    alignment: Alignment,
    source_spaced: Int64[ndarray, "2 source_vocab"],
    target_spaced: Int64[ndarray, "2 target_vocab"],
) -> Int64[ndarray, " target_rows"]:
    """Where one side's tokens begin with a space that the text does not have.

    Args:
        source: the teacher's label rows.
        target: the student's.
        alignment: which of the teacher's rows speak of each of the student's.
        source_spaced: ``[2, V_source]`` see ``fedfuse.alignment.spelling.spaced``.
        target_spaced: ``[2, V_target]`` the same of the student's tokens.

    Returns:
        ``[T_t]`` 1 where only the student's token has a space of its own, -1 where only the
        teacher's has, else 0; inside a teacher's token that of the row where it begins.
    """
    paired = np.flatnonzero(alignment.source_row >= 0)
    row, begin = alignment.source_row[paired], paired - alignment.tokens_into[paired]
    # A token with a space of its own in front is one byte longer than what it covers.
    covered_here = target.byte_end[begin] - target.byte_start[begin]
    covered_there = source.byte_end[row] - source.byte_start[row]
    inside = (target.byte_start[begin] > 0).astype(np.int64)
    extra_here = target_spaced[inside, target.token[begin]] == covered_here + 1
    extra_there = source_spaced[inside, source.token[row]] == covered_there + 1
    known = (target.byte_end[begin] >= 0) & (source.byte_end[row] >= 0)
    shift = np.zeros_like(target.token)
    shift[paired] = np.where(known, extra_here.astype(np.int64) - extra_there, 0)
    return shift


Found = tuple[
    Int64[ndarray, "rows m"],
    Int64[ndarray, "rows m"],
    Float64[ndarray, "rows m"],
    Bool[ndarray, " rows"],
]


def _along_label(
    teacher: SparseDistribution,
    label_logprob: Float32[ndarray, " source_rows"],
    source: LabelRows,
    first: Int64[ndarray, " rows"],
    label: Int64[ndarray, " rows"],
    events: EventTable,
    num_source_tokens: int,
) -> Found:
    """Start, stop and probability of events along the label, and which rows are known."""
    starts, stops, masses = [], [], []
    read = np.ones(len(first))  # probability of the teacher's label tokens so far
    before = np.zeros(len(first), dtype=np.int64)  # range of the student tokens that begin so
    for depth in range(num_source_tokens):
        row = first + depth
        entries, own = teacher.indices[row], source.token[row]
        mass = np.exp(teacher.logprobs[row].astype(np.float64)) * read[:, None]
        if depth:
            start, stop = events.event(depth, before[:, None], entries)
            end_start, end_stop = events.ending(depth, before[:, None], entries)
            ends = stop <= start
            start, stop = np.where(ends, end_start, start), np.where(ends, end_stop, stop)
        else:
            start, stop = events.opening[0][entries], events.opening[1][entries]
        masses.append(np.where(entries == own[:, None], 0.0, mass))
        starts.append(start)
        stops.append(stop)
        read = read * np.exp(label_logprob[row].astype(np.float64))
        start, stop = events.event(depth, before, own)
        before = np.where(stop > start, start, -1)
    place = events.place[label].astype(np.int64)
    # The student's label is what the teacher's label tokens were, however it is spelled alone.
    meant = (start <= place) & (place < stop)
    starts.append(np.where(meant, start, place)[:, None])
    stops.append(np.where(meant, stop, place + 1)[:, None])
    masses.append(read[:, None])
    known = np.ones(len(first), dtype=bool)
    return np.concatenate(starts, 1), np.concatenate(stops, 1), np.concatenate(masses, 1), known


def _inside(
    teacher: SparseDistribution,
    source: LabelRows,
    row: Int64[ndarray, " rows"],
    tokens: Int64[ndarray, "rows tokens_into_plus_1"],
    events: EventTable,
) -> Found:
    """The same inside a teacher's token, from the student's tokens in it, the label last.

    The share of probability outside the entries that are spelled is taken to be the same as at the
    teacher's row: nothing is known of it.
    """
    entries = teacher.indices[row]
    mass = np.exp(teacher.logprobs[row].astype(np.float64))
    before, label = tokens[:, :-1], tokens[:, -1]
    is_label = entries == source.token[row][:, None]
    spelled = is_label | (events.student_pieces[entries, 0] != NO_TOKEN)
    depth = before.shape[1]
    if depth < LONGEST:
        pieces = events.student_pieces[:, : depth + 1][entries]
        goes_on = (pieces[:, :, :depth] == before[:, None, :]).all(axis=2)
        following = pieces[:, :, depth]
    else:
        goes_on, following = is_label, np.full(entries.shape, NO_TOKEN, dtype=np.int32)
    # The teacher's label token is what the student reads, however it is spelled alone.
    following = np.where(is_label, label[:, None], following)
    kept = np.where(spelled, mass, 0.0).sum(axis=1)
    mass = np.where(goes_on | is_label, mass, 0.0)
    total = mass.sum(axis=1)
    mass = mass * (kept / np.where(total > 0, total, 1.0))[:, None]
    start = events.place[following].astype(np.int64)
    stop = start + (following != NO_TOKEN)
    known = (total > 0) & ((mass > 0) & (stop > start)).any(axis=1)
    return start, stop, mass, known


def _fill(
    result: EventDistribution,
    part: Int64[ndarray, " part"],
    order: int,
    start: Int64[ndarray, "part m"],
    stop: Int64[ndarray, "part m"],
    mass: Float64[ndarray, "part m"],
    known: Bool[ndarray, " part"],
) -> None:
    """Rows with the k most likely of their events; the rest is the tail."""
    start, stop, mass = merge_events(start, stop, mass)
    best = np.argsort(-mass, axis=1, kind="stable")[:, : result.k]
    start, stop, mass = (_picked(values, best) for values in (start, stop, mass))
    width = best.shape[1]
    result.order[part] = order
    result.start[part, :width] = start
    result.stop[part, :width] = stop
    result.logprobs[part, :width] = safe_log(mass)
    result.tail_logprob[part] = safe_log(np.maximum(1.0 - mass.sum(axis=1), 0.0))
    result.weight[part] = known


def merge_events(
    start: Int64[ndarray, "rows m"],
    stop: Int64[ndarray, "rows m"],
    mass: Float64[ndarray, "rows m"],
) -> tuple[Int64[ndarray, "rows m"], Int64[ndarray, "rows m"], Float64[ndarray, "rows m"]]:
    """Join ranges of a row of which one contains the other, and add their probabilities.

    Args:
        start: first places; any two ranges of a row are nested or apart.
        stop: places behind the last ones; empty ranges are left out.
        mass: probabilities; ranges without any are left out.

    Returns:
        The same, disjoint: an unused slot is empty and has no probability.
    """
    rows, m = start.shape
    used = (stop > start) & (mass > 0)
    limit = np.int64(stop.max(initial=0) + 1)
    # Ranges in order, a containing one before what it contains, unused slots last.
    key = np.where(used, start * limit + (limit - stop), limit * limit)
    slot = np.argsort(key, axis=1, kind="stable")
    start, stop, mass, used = (_picked(values, slot) for values in (start, stop, mass, used))
    reach = np.maximum.accumulate(np.where(used, stop, 0), axis=1)
    first = used.copy()
    first[:, 1:] &= start[:, 1:] >= reach[:, :-1]
    # Number the groups over the whole array, so that one bincount sums them all.
    group = first.ravel().cumsum() - 1
    sums = np.bincount(
        np.maximum(group, 0), weights=np.where(used, mass, 0.0).ravel(), minlength=rows * m
    )
    merged = np.where(first, sums[np.maximum(group, 0)].reshape(mass.shape), 0.0)
    return np.where(first, start, 0), np.where(first, stop, 0), merged


def _picked(
    values: Shaped[ndarray, "rows m"], slot: Int64[ndarray, "rows n"]
) -> Shaped[ndarray, "rows n"]:
    """``np.take_along_axis`` along the rows, several times faster."""
    rows, m = values.shape
    picked: Shaped[ndarray, "rows n"] = values.ravel().take(slot + np.arange(rows)[:, None] * m)
    return picked


def _groups(values: Int64[ndarray, " rows"]) -> list[tuple[int, Int64[ndarray, " some"]]]:
    """The rows at which ``values`` has each value above 0."""
    return [(int(v), np.flatnonzero(values == v)) for v in np.unique(values) if v > 0]


def _parts(rows: Int64[ndarray, " some"]) -> list[Int64[ndarray, " part"]]:
    return np.split(rows, range(_ROWS, len(rows), _ROWS))

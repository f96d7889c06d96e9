"""The nearest texts by edit distance: exact, without comparing everything with everything.

FedMKT (arXiv 2406.02224), Section 3.2 and Appendix B (minimum edit distance, MinED).

Equal texts and texts one edit apart, which is most of a vocabulary, are found by looking up the
text and what is left of it without one symbol. For the others the difference of two lengths bounds
their distance from below: targets are visited in rings of growing length difference, and a query is
done when what it has found is nearer than the next ring can be. Within a ring rapidfuzz compares
many pairs at once, on all cores.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Int32, Int64
from numpy import ndarray
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

Text = TypeVar("Text", bound=Sequence[Hashable])
Progress = Callable[[int, int], None]

# Distances computed at once: enough for all cores, and 16 megabytes at one byte each.
_CELLS = 1 << 24
_FAR = np.iinfo(np.int32).max


def nearest_texts(
    queries: Sequence[Text], targets: Sequence[Text], m: int, progress: Progress | None = None
) -> tuple[Int64[ndarray, "n m"], Int32[ndarray, "n m"]]:
    """For each query the ``m`` nearest targets; of equally near ones those that come first.

    Args:
        queries: n texts, as ``bytes`` or ``str``.
        targets: different texts, at least m of them, in the order that breaks ties.
        m: at least 1.
        progress: called with the number of queries that are done and n.

    Returns:
        ``[n, m]`` places in ``targets``, nearest first, and the edit distances.
    """
    place = np.full((len(queries), m), len(targets), dtype=np.int64)
    distance = np.full((len(queries), m), _FAR, dtype=np.int32)
    missing = np.arange(len(queries))
    if m == 1:
        missing = _look_up(queries, targets, place[:, 0], distance[:, 0])
    places_of_length = _by_length(targets)
    done = len(queries) - len(missing)
    for length, within in _by_length([queries[i] for i in missing.tolist()]).items():
        rows = missing[within]
        place[rows], distance[rows] = _search(
            [queries[i] for i in rows.tolist()], length, targets, places_of_length, m
        )
        done += len(rows)
        if progress is not None:
            progress(done, len(queries))
    return place, distance


def _look_up(
    queries: Sequence[Text],
    targets: Sequence[Text],
    place: Int64[ndarray, " n"],
    distance: Int32[ndarray, " n"],
) -> Int64[ndarray, " missing"]:
    """Fill in what is equal or one edit apart; returns the queries for which nothing is.

    One edit apart are two texts if one is the other without a symbol, or if both are equal without
    their symbol at one and the same position.
    """
    place_of = {text: i for i, text in enumerate(targets)}
    shortened: dict[Hashable, int] = {}  # a target without some symbol: the first such target
    for i, text in enumerate(targets):
        for at in range(len(text)):
            rest = text[:at] + text[at + 1 :]  # type: ignore[operator]
            shortened.setdefault(rest, i)
            shortened.setdefault((at, rest), i)
    none = len(targets)
    for row, text in enumerate(queries):
        found = place_of.get(text)
        if found is not None:
            place[row], distance[row] = found, 0
            continue
        best = shortened.get(text, none)
        for at in range(len(text)):
            rest = text[:at] + text[at + 1 :]  # type: ignore[operator]
            best = min(best, place_of.get(rest, none), shortened.get((at, rest), none))
        if best < none:
            place[row], distance[row] = best, 1
    return np.flatnonzero(place == none)


def _by_length(texts: Sequence[Text]) -> dict[int, Int64[ndarray, " some"]]:
    """Length to the places of the texts of that length, ascending."""
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    order = np.argsort(lengths, kind="stable")
    values, starts = np.unique(lengths[order], return_index=True)
    parts = np.split(order, starts[1:]) if len(order) else []
    return dict(zip(values.tolist(), parts, strict=True))


def _search(
    queries: list[Text],
    length: int,
    targets: Sequence[Text],
    places_of_length: dict[int, Int64[ndarray, " some"]],
    m: int,
) -> tuple[Int64[ndarray, "n m"], Int32[ndarray, "n m"]]:
    """The m nearest targets of queries that all have one length."""
    distance = np.full((len(queries), m), _FAR, dtype=np.int32)
    place = np.full((len(queries), m), len(targets), dtype=np.int64)
    for other in sorted(places_of_length, key=lambda other: abs(other - length)):
        # A target at the bound itself may still win a tie.
        active = np.flatnonzero(distance[:, -1] >= abs(other - length))
        if not len(active):
            break
        places = places_of_length[other]
        texts = [targets[i] for i in places.tolist()]
        step = max(1, _CELLS // len(texts))
        for part in np.split(active, range(step, len(active), step)):
            cells = _distances([queries[i] for i in part.tolist()], texts, max(length, other))
            _keep_nearest(cells, places, part, place, distance)
    return place, distance


def _distances(queries: list[Text], texts: list[Text], longest: int) -> ndarray:
    """Edit distances ``[queries, texts]``, in one byte each where they fit."""
    dtype = np.uint8 if longest < np.iinfo(np.uint8).max else np.int32
    return process.cdist(queries, texts, scorer=Levenshtein.distance, dtype=dtype, workers=-1)


def _keep_nearest(
    cells: ndarray,
    places: Int64[ndarray, " texts"],
    part: Int64[ndarray, " some"],
    place: Int64[ndarray, "n m"],
    distance: Int32[ndarray, "n m"],
) -> None:
    """Put the ring's targets that are nearer than what rows ``part`` have in their place."""
    m, rows, taken = place.shape[1], np.arange(len(part)), np.iinfo(cells.dtype).max
    for _ in range(min(m, len(places))):
        column = cells.argmin(axis=1)  # the first of equals is the one that comes first
        found, found_place = cells[rows, column].astype(np.int32), places[column]
        cells[rows, column] = taken
        worst, worst_place = distance[part, -1], place[part, -1]
        better = (found < worst) | ((found == worst) & (found_place < worst_place))
        if not better.any():
            break
        changed = part[better]
        distance[changed, -1], place[changed, -1] = found[better], found_place[better]
        if m > 1:
            order = np.lexsort((place[changed], distance[changed]), axis=1)
            distance[changed] = np.take_along_axis(distance[changed], order, axis=1)
            place[changed] = np.take_along_axis(place[changed], order, axis=1)

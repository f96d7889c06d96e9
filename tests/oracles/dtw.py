"""Slow, obvious version of dynamic time warping between two token sequences."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from tests.oracles.mined import edit_distance


def warping_path(source: Sequence[bytes], target: Sequence[bytes]) -> list[tuple[int, int]]:
    """The cheapest path; of equally cheap predecessors the diagonal, then the one above."""

    @cache
    def best(i: int, j: int) -> tuple[float, tuple[tuple[int, int], ...]]:
        if i < 0 or j < 0:
            return float("inf"), ()
        cost = edit_distance(source[i], target[j])
        if i == j == 0:
            return cost, ((0, 0),)
        before = [best(i - 1, j - 1), best(i - 1, j), best(i, j - 1)]
        total, path = min(before, key=lambda option: option[0])  # min keeps the first of equals
        return total + cost, (*path, (i, j))

    return list(best(len(source) - 1, len(target) - 1)[1])


def matches(source: Sequence[bytes], target: Sequence[bytes]) -> list[int]:
    """For each target token the one source token on the path, or -1 when there are several."""
    if not source or not target:
        return [-1] * len(target)
    path = warping_path(source, target)
    result = []
    for j in range(len(target)):
        found = [i for i, other in path if other == j]
        result.append(found[0] if len(found) == 1 else -1)
    return result

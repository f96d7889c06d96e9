"""Slow, obvious versions of the edit distance and of the vocabulary table."""

from __future__ import annotations

from collections.abc import Mapping


def edit_distance(left: bytes, right: bytes) -> int:
    """Levenshtein's distance by the textbook table."""
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i in range(len(left) + 1):
        for j in range(len(right) + 1):
            if i == 0 or j == 0:
                table[i][j] = i + j
                continue
            replace = table[i - 1][j - 1] + (left[i - 1] != right[j - 1])
            table[i][j] = min(replace, table[i - 1][j] + 1, table[i][j - 1] + 1)
    return table[-1][-1]


def nearest(text: bytes, target: Mapping[int, bytes]) -> tuple[int, int]:
    """Id and distance of the nearest target: smallest distance, then bytes, then id."""
    distance, _, token_id = min((edit_distance(text, b), b, i) for i, b in target.items())
    return token_id, distance

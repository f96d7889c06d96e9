"""Rice-coded postings one bit at a time, and adaptive k one entry at a time."""

from __future__ import annotations

import math


def width(count: int, rows: int) -> int:
    """The largest m with ``2**m <= 0.7 * rows / count``, at least 0."""
    m = 0
    while 2 ** (m + 1) <= rows * 7 // (10 * count):
        m += 1
    return m


def write(lists: list[list[int]], rows: int) -> tuple[str, str]:
    """Rows of each token as two strings of bits: quotients in unary, and remainders by plane."""
    unary, told = "", []
    for found in lists:
        m, last = width(len(found), rows), -1
        for row in found:
            gap, last = row - last - 1, row
            unary += "0" * (gap >> m) + "1"
            told.append((m, gap))
    planes = "".join(str(gap >> bit & 1) for bit in range(64) for m, gap in told if bit < m)
    return unary, planes


def kept(logprobs: list[float], mass: float) -> int:
    """How many entries of a row have ``mass`` together; at least one."""
    total = 0.0
    for number, logprob in enumerate(logprobs):
        if number and total >= mass:
            return number
        total += math.exp(logprob)
    return len(logprobs)

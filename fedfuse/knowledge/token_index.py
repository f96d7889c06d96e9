"""Which tokens each row keeps, as one list of rows per token: near the least that a set can take.

A row's entries are told as a set, so nothing is spent on their order; a token that many rows keep
has short gaps between them, so frequent tokens are cheap, whatever the size of the vocabulary. A
gap is written as Rice's code (Rice & Plaunt, "Adaptive variable-length coding for efficient
compression of spacecraft television data", 1971): its last m bits as they are, the rest in unary,
with m from the token's frequency, which is sent beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8
from numpy import ndarray

from fedfuse.knowledge.record import check

IntArray = Int64[ndarray, " n"]


@dataclass(frozen=True, slots=True)
class TokenIndex:
    """M kept entries of T rows, ordered by token and then by row, D distinct tokens in all.

    Attributes:
        tokens: ``[D]`` ascending token ids.
        counts: ``[D]`` rows that keep each, at least 1.
        row: ``[M]`` those rows, ascending for each token.
    """

    tokens: Int64[ndarray, " d"]
    counts: Int64[ndarray, " d"]
    row: Int64[ndarray, " m"]


def encode_gaps(index: TokenIndex, rows: int) -> tuple[UInt8[ndarray, " a"], UInt8[ndarray, " b"]]:
    """The rows of all index as bits: quotients in unary, then remainders plane by plane.

    Args:
        index: M entries.
        rows: T.
    """
    first = index.counts.cumsum() - index.counts
    gaps = np.diff(index.row, prepend=0) - 1
    gaps[first] = index.row[first]
    width = _widths(index.counts, rows)
    quotients = gaps >> width
    unary = np.zeros(int(quotients.sum()) + len(gaps), dtype=np.uint8)
    unary[(quotients + 1).cumsum() - 1] = 1  # every quotient is so many zeros and a one
    planes = [(gaps[width > bit] >> bit) & 1 for bit in range(int(width.max(initial=0)))]
    remainders = np.concatenate([np.empty(0, dtype=np.uint8), *planes]).astype(np.uint8)
    return np.packbits(unary), np.packbits(remainders)


def decode_gaps(
    counts: Int64[ndarray, " d"],
    unary: UInt8[ndarray, " a"],
    remainders: UInt8[ndarray, " b"],
    rows: int,
) -> Int64[ndarray, " m"]:
    """The inverse of ``encode_gaps``: the rows of all index.

    Args:
        counts: ``[D]`` rows of each token, at least 1; their sum M is already bounded.
        unary: as written.
        remainders: as written.
        rows: T.

    Raises:
        FedfuseError: for too many or too few bits, or rows beyond the last.
    """
    entries = int(counts.sum())
    ends = np.flatnonzero(np.unpackbits(unary))
    found = f"{len(ends)} gaps in {len(unary)} bytes"
    size = int(ends[-1]) // 8 + 1 if len(ends) else 0
    good = len(ends) == entries and len(unary) == size
    check("gaps", found, f"{entries} gaps in {size} bytes", good)
    width = _widths(counts, rows)
    bits = int(width.sum())
    size = -(-bits // 8)
    good = len(remainders) == size
    check("remainders", f"{len(remainders)} bytes", f"{size} bytes", good)
    quotients = np.diff(ends, prepend=-1) - 1
    # A larger one would be a gap beyond the last row, and could overflow when it is put together.
    good = bool((quotients <= rows >> width).all())
    check("gaps", "a gap beyond the last row", f"gaps below {rows}", good)
    gaps = quotients << width
    plane = np.unpackbits(remainders, count=bits)
    start = 0
    for bit in range(int(width.max(initial=0))):
        which = width > bit
        stop = start + int(which.sum())
        gaps[which] |= plane[start:stop].astype(np.int64) << bit
        start = stop
    # Ascending within a token by construction: gaps are at least zero.
    ends = counts.cumsum()
    reached = (gaps + 1).cumsum()
    before = np.concatenate([[0], reached[ends[:-1] - 1]])[: len(counts)]
    places: ndarray = reached - np.repeat(before, counts) - 1
    largest = int(places.max(initial=-1))
    check("gaps", f"row {largest}", f"rows below {rows}", largest < rows)
    return places


def _widths(counts: Int64[ndarray, " d"], rows: int) -> Int64[ndarray, " m"]:
    """``[M]`` m of every entry: the whole part of ``log2(0.7 T / count)``; 0.7 is about log 2.

    In whole numbers, so that both sides of the wire agree on any machine.
    """
    mean = np.maximum(rows * 7 // (10 * counts), 1)
    return np.repeat(np.frexp(mean.astype(np.float64))[1].astype(np.int64) - 1, counts)

"""Lists of rows as bits: equal to the oracle, and nothing else is accepted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfuse.errors import FedfuseError
from fedfuse.knowledge.token_index import TokenIndex, decode_gaps, encode_gaps
from tests.oracles import postings as oracle


def postings(lists: list[list[int]]) -> TokenIndex:
    return TokenIndex(
        np.arange(len(lists)),
        np.array([len(found) for found in lists], dtype=np.int64),
        np.array([row for found in lists for row in found], dtype=np.int64),
    )


def packed(bits: str) -> np.ndarray:
    return np.packbits(np.array([int(bit) for bit in bits], dtype=np.uint8))


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    rows = draw(st.integers(1, 300))
    one = st.sets(st.integers(0, rows - 1), min_size=1).map(sorted)
    return rows, draw(st.lists(one, max_size=6))


@settings(max_examples=200, deadline=None)
@given(cases())
def test_equals_the_oracle_and_comes_back(case: tuple[int, list[list[int]]]) -> None:
    rows, lists = case
    told = postings(lists)
    unary, remainders = encode_gaps(told, rows)
    wanted = [packed(bits) for bits in oracle.write(lists, rows)]
    np.testing.assert_array_equal(unary, wanted[0])
    np.testing.assert_array_equal(remainders, wanted[1])
    np.testing.assert_array_equal(decode_gaps(told.counts, unary, remainders, rows), told.row)


def test_by_hand() -> None:
    """Of 20 rows two: m is 2 for 20 * 0.7 / 2 = 7; gaps 5 = 1 * 4 + 1 and 10 = 2 * 4 + 2."""
    unary, remainders = encode_gaps(postings([[5, 16]]), 20)
    assert np.unpackbits(unary).tolist() == [0, 1, 0, 0, 1, 0, 0, 0]
    assert np.unpackbits(remainders).tolist() == [1, 0, 0, 1, 0, 0, 0, 0]


def test_a_set_costs_near_its_entropy() -> None:
    """Random rows of random frequency: within 5 % of the least that the gaps can take."""
    rng = np.random.default_rng(0)
    rows, bits, least = 20_000, 0, 0.0
    lists = []
    for share in (0.4, 0.1, 0.03, 0.01, 0.001):
        lists.append(np.flatnonzero(rng.random(rows) < share).tolist())
        least -= rows * (share * np.log2(share) + (1 - share) * np.log2(1 - share))
    bits = 8 * sum(len(part) for part in encode_gaps(postings(lists), rows))
    assert least < bits < 1.05 * least


@pytest.mark.parametrize(
    ("unary", "remainders", "match"),
    [
        ("01001", "100", "gaps: expected 3.*, got 2 gaps in 1 bytes"),
        ("01001" + "0" * 8, "1001", "expected 2 gaps in 1 bytes.*, got 2 gaps in 2"),
        ("", "1001", "0 gaps"),
        ("01001", "1001" + "0" * 8, "remainders: expected 1.*, got 2 bytes"),
        ("01001", "", "remainders: expected .*, got 0 bytes"),
        ("0000001" + "1", "1001", "beyond the last row"),
        ("01" + "0" * 4 + "1", "1001", "expected rows below 20.*, got row 24"),
    ],
)
def test_other_bits_are_refused(unary: str, remainders: str, match: str) -> None:
    counts = np.array([3 if "expected 3" in match else 2])
    with pytest.raises(FedfuseError, match=match):
        decode_gaps(counts, packed(unary), packed(remainders), 20)

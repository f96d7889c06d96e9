"""The search for nearest texts against comparing everything with everything."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfuse.alignment import nearest
from fedfuse.alignment.nearest import nearest_texts
from tests.oracles.mined import edit_distance

# Few letters, so that texts are near each other and ties abound.
words = st.text("abcé", max_size=6)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    source=st.sets(words, max_size=8),
    target=st.sets(words, min_size=3, max_size=8),
    m=st.integers(1, 3),
    as_bytes=st.booleans(),
)
def test_search_equals_oracle(source: set[str], target: set[str], m: int, as_bytes: bool) -> None:
    queries: list[str] | list[bytes] = sorted(source)
    texts: list[str] | list[bytes] = sorted(target)
    if as_bytes:
        queries, texts = [q.encode() for q in sorted(source)], [t.encode() for t in sorted(target)]
    places, distances = nearest_texts(queries, texts, m)
    assert places.shape == distances.shape == (len(queries), m)
    for row, query in enumerate(queries):
        expected = sorted((edit_distance(query, text), i) for i, text in enumerate(texts))[:m]
        found = zip(distances[row].tolist(), places[row].tolist(), strict=True)
        assert list(found) == expected


@pytest.mark.parametrize("m", [1, 4])
def test_search_in_small_chunks(monkeypatch: pytest.MonkeyPatch, m: int) -> None:
    rng = np.random.default_rng(0)
    texts = sorted(
        {rng.integers(97, 101, rng.integers(1, 9)).astype(np.uint8).tobytes() for _ in range(200)}
    )
    queries, targets = texts[::2], texts[1::2]
    whole = nearest_texts(queries, targets, m)
    monkeypatch.setattr(nearest, "_CELLS", 7)
    for found, expected in zip(nearest_texts(queries, targets, m), whole, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_distances_above_one_byte() -> None:
    queries, texts = [b"a" * 700, b"b" * 300], [b"a" * 10, b"b" * 290]
    places, distances = nearest_texts(queries, texts, 2)
    assert places.tolist() == [[0, 1], [1, 0]]
    assert distances.tolist() == [[690, 700], [10, 300]]
    longest = b"a" * 255  # the largest value of a byte is no distance
    assert nearest_texts([longest], [b"b" * 255, b"c"], 2)[1].tolist() == [[255, 255]]


def test_progress_ends_with_everything() -> None:
    calls: list[tuple[int, int]] = []
    queries, texts = [b"aaaa", b"bb", b"cccccc", b"x"], [b"x", b"zzzzz"]
    nearest_texts(queries, texts, 1, lambda done, total: calls.append((done, total)))
    assert calls[-1] == (4, 4)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)

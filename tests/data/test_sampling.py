"""The order of samples is a function of seed and position; parts are cut by length."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfuse.data.sampling import parts_by_length, sample_indices, step_seed


@pytest.mark.parametrize("count", [1, 5, 12, 30])
def test_an_epoch_sees_every_sample_once(count: int) -> None:
    """Twelve samples; batches go over the end of an epoch, and may hold several epochs."""
    seen = np.concatenate(
        [sample_indices(12, 1, position, count) for position in range(0, 60, count)]
    )
    epochs = seen.reshape(5, 12)
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs.tolist())
    assert len(set(map(tuple, epochs.tolist()))) == 5


@given(st.integers(1, 20), st.integers(0, 100), st.integers(1, 50), st.integers(1, 50))
def test_the_stream_is_one_however_it_is_read(
    size: int, position: int, first: int, second: int
) -> None:
    whole = sample_indices(size, 7, position, first + second)
    parts = [
        sample_indices(size, 7, position, first),
        sample_indices(size, 7, position + first, second),
    ]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_seeds_differ() -> None:
    assert not np.array_equal(sample_indices(50, 1, 0, 50), sample_indices(50, 2, 0, 50))
    seeds = [step_seed(seed, position) for seed in range(20) for position in range(0, 640, 32)]
    assert len(set(seeds)) == 400
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert step_seed(3, 32) == step_seed(3, 32)


def test_parts_by_hand() -> None:
    lengths = np.array([5, 2, 9, 3, 2, 5])
    parts = [part.tolist() for part in parts_by_length(lengths, 10)]
    # 3 x 3 tokens, 2 x 5, 1 x 9.
    assert parts == [[1, 4, 3], [0, 5], [2]]
    assert [part.tolist() for part in parts_by_length(lengths, 0)] == [[1, 4, 3, 0, 5, 2]]
    assert [len(part) for part in parts_by_length(lengths, 1)] == [1] * 6
    assert list(parts_by_length(lengths[:0], 10)) == []


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 90))
def test_parts_are_bounded_and_complete(lengths: list[int], max_tokens: int) -> None:
    all_ = np.array(lengths, dtype=np.int64)
    parts = list(parts_by_length(all_, max_tokens))
    assert sorted(i for part in parts for i in part.tolist()) == list(range(len(lengths)))
    for part in parts:
        assert len(part) == 1 or len(part) * all_[part].max() <= max_tokens
    in_order = [length for part in parts for length in all_[part].tolist()]
    assert in_order == sorted(lengths)


@given(st.lists(st.integers(1, 30), max_size=9), st.integers(1, 40))
def test_padding_and_passes_cost_the_least(lengths: list[int], pass_cost: int) -> None:
    """Of all ways to cut samples in order of length."""

    def cost(parts: list[list[int]]) -> int:
        return sum(len(part) * max(part) + pass_cost for part in parts)

    ordered = sorted(lengths)
    ways = [
        [ordered[i:j] for i, j in pairwise([0, *cuts, len(ordered)])]
        for count in range(len(ordered))
        for cuts in combinations(range(1, len(ordered)), count)
    ]
    all_ = np.array(lengths, dtype=np.int64)
    found = [all_[part].tolist() for part in parts_by_length(all_, 0, pass_cost)]
    assert sorted(length for part in found for length in part) == ordered
    assert cost(found) == min(map(cost, ways), default=0)

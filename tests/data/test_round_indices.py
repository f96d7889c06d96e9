"""Rounds about some samples: all have their turn, and a round's number says which they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfuse.data.sampling import round_indices


@pytest.mark.parametrize(("number", "share", "rounds"), [(12, 0.25, 4), (12, 1.0, 1), (7, 0.2, 4)])
def test_all_have_their_turn(number: int, share: float, rounds: int) -> None:
    seen = np.concatenate([round_indices(number, share, 3, r) for r in range(1, rounds + 1)])
    assert set(seen.tolist()) == set(range(number))
    if number % len(round_indices(number, share, 3, 1)) == 0:
        assert len(seen) == number


@given(st.integers(1, 40), st.floats(0.01, 1), st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_some_samples_ascending(number: int, share: float, seed: int, server_round: int) -> None:
    which = round_indices(number, share, seed, server_round)
    assert 1 <= len(which) <= np.ceil(number * share) + 1
    assert which.min() >= 0
    assert which.max() < number
    assert (np.diff(which) > 0).all()
    np.testing.assert_array_equal(which, round_indices(number, share, seed, server_round))


def test_rounds_and_seeds_differ() -> None:
    first = round_indices(100, 0.1, 0, 1).tolist()
    assert first != round_indices(100, 0.1, 0, 2).tolist()
    assert first != round_indices(100, 0.1, 1, 1).tolist()

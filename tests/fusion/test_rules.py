"""DualMinCE is the paper's Algorithm 2, number by number."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfuse.fusion.rules import dual_min_ce, uniform
from tests.oracles import fusion as oracle

inf = float("inf")


def select(*rows: list[float]) -> list[list[float]]:
    return dual_min_ce(np.array(rows, dtype=np.float32)).tolist()


@pytest.mark.parametrize(
    ("losses", "weights"),
    [
        ([1.0, 0.9, 0.5, 0.7], [0, 0, 1, 0]),  # the smallest
        ([1.0, 0.5, 0.5, 0.7], [0, 1, 0, 0]),  # the first of equals
        ([0.5, 0.9, 0.5, 0.7], [0, 0, 0, 0]),  # a tie with the own is no improvement
        ([0.4, 0.9, 0.5, 0.7], [0, 0, 0, 0]),  # all are worse
        ([1.0, 2.0, 3.0, 0.999], [0, 0, 0, 1]),
        ([inf, 2.0, inf, 3.0], [0, 1, 0, 0]),  # who knows nothing learns from anyone
        ([1.0, inf, inf, inf], [0, 0, 0, 0]),  # and teaches nobody
        ([inf, inf, inf, inf], [0, 0, 0, 0]),
    ],
)
def test_by_hand(losses: list[float], weights: list[float]) -> None:
    assert select(losses) == [weights]


def test_samples_are_on_their_own() -> None:
    assert select([1, 0, 2], [1, 2, 0], [1, 2, 2]) == [[0, 1, 0], [0, 0, 1], [0, 0, 0]]


def test_nobody_to_learn_from() -> None:
    assert select([1.0], [2.0]) == [[0.0], [0.0]]


GRID = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 5).flatmap(lambda n: st.lists(st.lists(GRID, min_size=n, max_size=n))))
def test_equals_the_oracle(rows: list[list[float]]) -> None:
    losses = np.array(rows, dtype=np.float32).reshape(len(rows), len(rows[0]) if rows else 3)
    found = dual_min_ce(losses)
    assert found.tolist() == oracle.dual_min_ce(rows)
    assert found.dtype == losses.dtype
    assert found.shape == losses.shape
    assert (found[:, 0] == 0).all()


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(6)), st.integers(0, 1000), st.permutations(range(4)))
def test_permuted_teachers_have_permuted_weights(
    values: list[int], seed: int, order: list[int]
) -> None:
    """Without ties, names do not matter."""
    rng = np.random.default_rng(seed)
    losses = np.stack([rng.permutation(values)[:5] for _ in range(9)]).astype(np.float32)
    columns = [0, *(1 + place for place in order)]
    for select in (dual_min_ce, uniform):
        np.testing.assert_array_equal(select(losses)[:, columns], select(losses[:, columns]))


def test_uniform() -> None:
    losses = np.array([[1, 5, 0, 7, 2], [0, 1, 2, 3, 4]], dtype=np.float32)
    assert uniform(losses).tolist() == [[0, 0.25, 0.25, 0.25, 0.25]] * 2
    assert uniform(losses[:, :1]).tolist() == [[0], [0]]
    assert uniform(losses[:, :2]).tolist() == [[0, 1], [0, 1]]

"""Intervals equal published numbers, and cover what they are of as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfuse.evaluation.intervals import (
    DRAWS,
    Estimate,
    basic_interval,
    mean_estimate,
    resample,
    wilson,
)


@pytest.mark.parametrize(
    # R. G. Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in
    # Medicine 17, 1998, table I, method 3.
    ("right", "count", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_is_newcombes(right: int, count: int, low: float, high: float) -> None:
    found = wilson(right / count, count)
    assert found.value == right / count
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


@given(st.floats(0, 1), st.integers(1, 10**6))
def test_wilson_holds_its_share_within_0_and_1(share: float, count: int) -> None:
    found = wilson(share, count)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_a_mean_of_estimates_by_hand() -> None:
    found = mean_estimate([Estimate(0.5, 0.2, 0.9), Estimate(0.7, 0.3, 1.0)])
    assert (found.value, found.low, found.high) == pytest.approx((0.6, 0.6 - 0.25, 0.6 + 0.25))
    alone = Estimate(0.5, 0.2, 0.9)
    same = mean_estimate([alone])
    assert (same.value, same.low, same.high) == pytest.approx((0.5, 0.2, 0.9))


def test_equal_domains_have_the_interval_of_their_questions_together() -> None:
    several = mean_estimate([wilson(0.5, 100)] * 4)
    together = wilson(0.5, 400)
    assert several.high - several.low == pytest.approx(together.high - together.low, rel=0.02)


def test_a_basic_interval_by_hand() -> None:
    draws = np.linspace(1, 3, 201)
    found = basic_interval(2.2, draws, np.inf)
    assert (found.value, found.low, found.high) == pytest.approx((2.2, 4.4 - 2.95, 4.4 - 1.05))
    assert basic_interval(2.2, draws, 3).high == 3
    assert basic_interval(0.5, draws, 3) == Estimate(0.5, 0, 0.5)


def test_draws_are_those_of_a_seed() -> None:
    values = np.random.default_rng(1).normal(size=50)

    def mean(which: np.ndarray) -> np.ndarray:
        return np.array([values[which].mean(), len(set(which.tolist()))])

    found = resample(mean, 50, [0])
    assert found.shape == (DRAWS, 2)
    np.testing.assert_array_equal(found, resample(mean, 50, [0]))
    assert (found != resample(mean, 50, [1])).any()
    assert found[:, 0].std() == pytest.approx(values.std() / np.sqrt(50), rel=0.05)
    assert 25 < found[:, 1].mean() < 37  # 1 - 1/e of them, as with replacement


def test_bootstrap_intervals_hold_the_mean_nearly_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    held = 0
    for number in range(60):
        values = rng.exponential(size=60)
        draws = resample(lambda which, v=values: v[which].mean(), 60, [number])  # type: ignore[misc]
        found = basic_interval(float(values.mean()), draws, np.inf)
        held += found.low <= 1 <= found.high
    assert 50 <= held <= 60

"""Calibration by hand, and as a loop over bins finds it."""

from __future__ import annotations

import numpy as np
import pytest

from fedfuse.evaluation.calibration import (
    BINS,
    bin_gaps,
    brier_scores,
    expected_calibration_error,
    mean_gaps,
)
from fedfuse.evaluation.options import correctness, normalized
from tests.oracles import evaluation as oracle


def error_of(shares: np.ndarray, right: np.ndarray) -> float:
    logs = np.log(shares).astype(np.float32)
    return float(expected_calibration_error(mean_gaps(*bin_gaps(logs, correctness(logs, right)))))


def test_by_hand() -> None:
    """Two questions at 0.9, one right: off by 0.4. One at 0.6 that is right: off by 0.4 too."""
    shares = np.array([[0.9, 0.1], [0.1, 0.9], [0.4, 0.6]])
    right = np.array([0, 0, 1])
    assert error_of(shares, right) == pytest.approx(0.4, abs=1e-6)
    logs = np.log(shares).astype(np.float32)
    assert brier_scores(logs, right) == pytest.approx([0.02, 1.62, 0.32], abs=1e-5)


def test_opposite_gaps_of_two_bins_do_not_cancel() -> None:
    shares = np.array([[0.9, 0.1], [0.6, 0.4]])
    assert error_of(shares, np.array([1, 0])) == pytest.approx((0.9 + 0.4) / 2, abs=1e-6)


def test_opposite_gaps_within_a_bin_do() -> None:
    shares = np.array([[0.75, 0.25]] * 4)
    assert error_of(shares, np.array([0, 0, 0, 1])) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("confidence", "number"), [(1.0, BINS - 1), (0.5, BINS // 2), (0.4, 5), (0.41, 6)]
)
def test_a_bin_has_its_upper_end(confidence: float, number: int) -> None:
    rest = (1 - confidence) / 2
    logs = np.log(np.maximum([[confidence, rest, rest]], 1e-30)).astype(np.float64)
    bins, gaps = bin_gaps(logs, np.array([1.0]))
    assert bins.tolist() == [number]
    assert gaps == pytest.approx([1 - confidence])


def test_it_is_that_of_a_loop_over_bins() -> None:
    rng = np.random.default_rng(0)
    logprob = rng.normal(size=(200, 5)).astype(np.float32) * 2
    logprob[:50, 4] = -np.inf  # questions of four options
    right = rng.integers(4, size=200)
    shares = normalized(logprob)
    correct = correctness(shares, right)
    rows = np.exp(shares.astype(np.float64)).tolist()

    found = expected_calibration_error(mean_gaps(*bin_gaps(shares, correct)))

    assert found == pytest.approx(oracle.calibration_error(rows, correct.tolist()), abs=1e-9)
    assert found > 0.05
    expected = oracle.brier(rows, right.tolist())
    assert brier_scores(shares, right).mean() == pytest.approx(expected, abs=1e-9)

"""Interference by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fedfuse.errors import FedfuseError
from fedfuse.evaluation.interference import LossChange, measure_interference, paired_noise


def cells(seed: int, *changes: float, noise: float = 0.0) -> list[LossChange]:
    return [LossChange(seed, "server", f"d{n}", 1.0, 1.0 + c, noise) for n, c in enumerate(changes)]


def test_rate_and_depth_by_hand() -> None:
    found = measure_interference(cells(0, -0.2, 0.1, 0.3, -0.1) + cells(1, -0.1, -0.1, -0.1, 0.2))
    assert found.rate == pytest.approx(3 / 8)
    assert found.depth == pytest.approx(0.2)
    # Seeds are drawn whole: rates of 1/2, 3/8 or 1/4.
    assert found.rate_interval == pytest.approx((1 / 4, 1 / 2))
    assert found.depth_interval == pytest.approx((0.2, 0.2))


def test_a_rise_within_noise_does_not_count() -> None:
    assert measure_interference(cells(0, 0.1, 0.3, noise=0.2)).rate == 0.5
    found = measure_interference(cells(0, 0.1, 0.1, noise=0.2))
    assert (found.rate, found.depth, found.depth_interval) == (0, 0, (0, 0))


def test_one_seed_has_no_width() -> None:
    found = measure_interference(cells(3, 0.1, -0.1))
    assert found.rate_interval == (0.5, 0.5)


def test_noise_of_paired_samples() -> None:
    before = np.array([1.0, 5.0, 9.0])
    after = before + np.array([0.0, 0.1, 0.2])
    assert paired_noise(before, after) == pytest.approx(1.645 * 0.1 / np.sqrt(3))
    assert paired_noise(before[:1], after[:1]) == float("inf")


def test_no_cells() -> None:
    with pytest.raises(FedfuseError, match="at least one loss change"):
        measure_interference([])

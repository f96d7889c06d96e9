"""A round is kept unless a domain got worse beyond noise."""

from __future__ import annotations

import numpy as np
import pytest

from fedfuse.errors import FedfuseError
from fedfuse.evaluation.acceptance import OVERALL, acceptance_test


def test_better_is_kept_and_worse_rolled_back() -> None:
    rng = np.random.default_rng(0)
    before, noise = rng.random(80), rng.normal(scale=0.02, size=80)
    domains = ["bank"] * 40 + ["clinic"] * 40
    assert acceptance_test(before, before - 0.05 + noise, domains).keep
    acceptance = acceptance_test(before, before + 0.05 + noise, domains)
    assert not acceptance.keep
    assert acceptance.worse == [OVERALL, "bank", "clinic"]
    assert acceptance.changes["bank"].mean == pytest.approx(0.05 + noise[:40].mean())
    assert 0 < acceptance.changes["bank"].lower < acceptance.changes["bank"].mean


def test_one_domain_is_enough() -> None:
    """Even where the others gain more."""
    rng = np.random.default_rng(1)
    change = np.repeat([-0.3, 0.05], 40) + rng.normal(scale=0.02, size=80)
    acceptance = acceptance_test(np.ones(80), 1 + change, ["bank"] * 40 + ["clinic"] * 40)
    assert acceptance.worse == ["clinic"]


def test_noise_alone_seldom_rolls_back() -> None:
    domains = [f"d{i % 4}" for i in range(160)]
    rng = np.random.default_rng(2)
    before = rng.random(160)
    kept = [acceptance_test(before, before + rng.normal(size=160), domains).keep for _ in range(60)]
    assert np.mean(kept) > 0.88


def test_too_few_samples_of_a_domain_count_among_all() -> None:
    before = np.zeros(40)
    after = before.copy()
    after[:3] = 0.5
    acceptance = acceptance_test(before, after, ["rare"] * 3 + ["bank"] * 37)
    assert set(acceptance.changes) == {OVERALL, "bank"}


def test_no_change_is_kept() -> None:
    assert acceptance_test(np.ones(10), np.ones(10), [""] * 10).keep
    assert set(acceptance_test(np.ones(10), np.ones(10), [""] * 10).changes) == {OVERALL}


def test_the_same_seed_the_same_result() -> None:
    rng = np.random.default_rng(3)
    before, after = rng.random(20), rng.random(20)
    assert acceptance_test(before, after, ["a"] * 20) == acceptance_test(before, after, ["a"] * 20)


@pytest.mark.parametrize(
    ("before", "after", "domains", "level", "message"),
    [
        ([1.0], [1.0, 2.0], ["a"], 0.05, r"got \(1, 2, 1\)"),
        ([], [], [], 0.05, "one or more"),
        ([1.0], [np.nan], ["a"], 0.05, "finite"),
        ([1.0], [1.0], ["a"], 0.0, "got 0.0"),
    ],
)
def test_nonsense_is_refused(before, after, domains, level, message) -> None:
    with pytest.raises(FedfuseError, match=message):
        acceptance_test(np.array(before), np.array(after), domains, level=level)

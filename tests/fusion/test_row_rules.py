"""Baselines under the selector's interface, number by number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedfuse.errors import FedfuseError
from fedfuse.fusion.row_rules import (
    avg_ce,
    by_loss,
    on_rows,
    on_samples,
    oracle,
    untrained_gate,
    zero_if_only_self,
)
from fedfuse.fusion.rules import dual_min_ce, min_ce, uniform
from fedfuse.fusion.teacher_stats import StackedStats
from tests.fusion.evidences import made_up

inf = float("inf")


@pytest.fixture
def stats() -> StackedStats:
    return made_up(np.random.default_rng(0), samples=12, candidates=4)


def test_min_ce_does_not_ask_the_learning_model() -> None:
    losses = np.array(
        [[0.1, 0.9, 0.5, 0.7], [1, 0.5, 0.5, 2], [1, inf, inf, inf]], dtype=np.float32
    )
    assert min_ce(losses).tolist() == [[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert min_ce(losses[:, :1]).tolist() == [[0]] * 3


@pytest.mark.parametrize("rule", [dual_min_ce, min_ce, uniform])
def test_a_rule_over_losses_is_a_selector(rule, stats: StackedStats) -> None:
    weights = by_loss(rule)(stats)
    right = rule(stats.loss)
    np.testing.assert_array_equal(weights, right[stats.sample_of_row])
    np.testing.assert_allclose(on_samples(weights, stats), right, atol=1e-7)


def test_avg_ce_by_hand(stats: StackedStats) -> None:
    weights = avg_ce(stats)
    row = int(stats.offsets[5])
    score = stats.label_likelihood[5]
    np.testing.assert_allclose(weights[row], score / score.sum(), rtol=1e-6)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)


def test_an_untrained_gate_is_another_one_each_time(stats: StackedStats) -> None:
    first, second = untrained_gate(0, 0.15), untrained_gate(0, 0.15)
    weights = [first(stats) for _ in range(2)]
    assert (weights[0] != weights[1]).any()
    np.testing.assert_array_equal(second(stats), weights[0])
    assert ((weights[0] == 0) | (weights[0] > 0.15)).all()


def test_the_oracle(stats: StackedStats) -> None:
    column = np.arange(12) % 4
    weights = on_samples(oracle(column)(stats), stats)
    np.testing.assert_allclose(weights, np.eye(4)[column])
    assert not oracle(np.zeros(12, dtype=np.int64))(stats).any()  # nobody knows better


def test_samples_without_rows_have_no_weight(stats: StackedStats) -> None:
    offsets = stats.offsets.copy()
    offsets[4] = offsets[3]
    moved = replace(stats, offsets=offsets)
    weights = np.ones((12, 4), dtype=np.float32)
    found = on_samples(on_rows(weights, moved), moved)
    assert found[:, 0].tolist() == [float(i != 3) for i in range(12)]


def test_trust_in_oneself_alone_is_no_lesson() -> None:
    weights = np.array([[1, 0, 0], [1, 0, 0]], dtype=np.float32)
    assert not zero_if_only_self(weights).any()


def test_beside_a_teacher_it_holds_the_model_where_it_is() -> None:
    weights = np.array([[1, 0, 0], [0.5, 0.5, 0], [0, 0, 0]], dtype=np.float32)
    assert zero_if_only_self(weights).tolist() == weights.tolist()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda losses: losses[:, 1:],
        lambda losses: np.zeros_like(losses) - 0.1,
        lambda losses: np.full_like(losses, np.nan),
    ],
)
def test_anything_else_is_refused(wrong, stats: StackedStats) -> None:
    with pytest.raises(FedfuseError, match=r"selector returned .* allowed: shape \(12, 4\)"):
        by_loss(wrong)(stats)

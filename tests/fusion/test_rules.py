"""Rules, number by number; DualMinCE is the paper's Algorithm 2."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfuse.config.gate import GateConfig
from fedfuse.errors import FedfuseError
from fedfuse.fusion.gating.learned_gate import LearnedGate
from fedfuse.fusion.rules import (
    RULES,
    LearningRule,
    NearestNeighbours,
    UntrainedGate,
    avg_ce,
    dual_min_ce,
    find_rule,
    labels_only,
    min_ce,
    rule,
    uniform,
)
from fedfuse.fusion.rules import oracle as oracle_rule
from fedfuse.fusion.teacher_stats import StackedStats
from fedfuse.fusion.weights import row_weights, zero_if_only_self
from fedfuse.sparse import LEAST_LOGPROB
from tests.fusion.example_stats import made_up, of_losses, two_domains
from tests.oracles import fusion as oracle
from tests.oracles.gate import neighbour_accuracy

inf = float("inf")


def weigh(*rows: list[float]) -> list[list[float]]:
    return dual_min_ce(of_losses(np.array(rows, dtype=np.float32))).tolist()


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
    assert weigh(losses) == [weights]


def test_samples_are_on_their_own() -> None:
    assert weigh([1, 0, 2], [1, 2, 0], [1, 2, 2]) == [[0, 1, 0], [0, 0, 1], [0, 0, 0]]


def test_nobody_to_learn_from() -> None:
    assert weigh([1.0], [2.0]) == [[0.0], [0.0]]


GRID = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 5).flatmap(lambda n: st.lists(st.lists(GRID, min_size=n, max_size=n))))
def test_equals_the_oracle(rows: list[list[float]]) -> None:
    losses = np.array(rows, dtype=np.float32).reshape(len(rows), len(rows[0]) if rows else 3)
    found = dual_min_ce(of_losses(losses))
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
    for weigh in (dual_min_ce, uniform):
        found, permuted = weigh(of_losses(losses)), weigh(of_losses(losses[:, columns]))
        np.testing.assert_array_equal(found[:, columns], permuted)


def test_uniform() -> None:
    losses = np.array([[1, 5, 0, 7, 2], [0, 1, 2, 3, 4]], dtype=np.float32)
    assert uniform(of_losses(losses)).tolist() == [[0, 0.25, 0.25, 0.25, 0.25]] * 2
    assert uniform(of_losses(losses[:, :1])).tolist() == [[0], [0]]
    assert uniform(of_losses(losses[:, :2])).tolist() == [[0, 1], [0, 1]]


@pytest.fixture
def stats() -> StackedStats:
    return made_up(np.random.default_rng(0), samples=12, candidates=4)


def test_min_ce_does_not_ask_the_learning_model() -> None:
    losses = np.array(
        [[0.1, 0.9, 0.5, 0.7], [1, 0.5, 0.5, 2], [1, inf, inf, inf]], dtype=np.float32
    )
    assert min_ce(of_losses(losses)).tolist() == [[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert min_ce(of_losses(losses[:, :1])).tolist() == [[0]] * 3


@pytest.mark.parametrize("rule", [dual_min_ce, min_ce, uniform])
def test_a_rule_over_losses_weighs_every_row_alike(rule, stats: StackedStats) -> None:
    weights = rule(stats)
    right = rule(of_losses(stats.loss))
    np.testing.assert_array_equal(weights, right[stats.sample_of_row])
    np.testing.assert_allclose(stats.to_samples(weights), right, atol=1e-7)


def test_avg_ce_by_hand(stats: StackedStats) -> None:
    weights = avg_ce(stats)
    row = int(stats.offsets[5])
    score = stats.label_likelihood[5]
    np.testing.assert_allclose(weights[row], score / score.sum(), rtol=1e-6)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)


def test_an_untrained_gate_is_another_one_each_time(stats: StackedStats) -> None:
    first, second = (UntrainedGate(GateConfig(threshold=0.15), 0) for _ in range(2))
    weights = [first(stats) for _ in range(2)]
    assert (weights[0] != weights[1]).any()
    np.testing.assert_array_equal(second(stats), weights[0])
    assert ((weights[0] == 0) | (weights[0] > 0.15)).all()


def test_neighbours_by_hand() -> None:
    """Two groups; the own label of a sample, which favours somebody else, does not count."""
    group = np.repeat([0, 1], 3)
    prob = np.where(group[:, None] == np.arange(2), 0.6, 0.2)
    prob = np.concatenate([np.full((6, 1), 0.3), prob], axis=1)
    prob[0] = [0.1, 0.0, 1.0]
    evidence = replace(
        of_losses(np.zeros((6, 3), dtype=np.float32)),
        label_logprob=np.log(np.maximum(prob, 1e-3)).astype(np.float32),
        state=np.eye(2, dtype=np.float32)[group],
    )
    nearest = NearestNeighbours(GateConfig(neighbours=2), 0)
    # 1 and 2 have 0 as a neighbour, which is bad for teacher 1: (0.001 + 0.6) / 2 is the best yet.
    np.testing.assert_array_equal(nearest(evidence).argmax(1), [1, 2, 2, 2, 2, 2])
    few = NearestNeighbours(GateConfig(neighbours=5), 0)
    assert not few(replace(evidence, label_logprob=evidence.label_logprob[:, [2, 1, 1]])).any()


@pytest.mark.parametrize("seed", range(3))
def test_neighbours_equal_the_oracle(seed: int) -> None:
    stats = made_up(np.random.default_rng(seed), samples=30, candidates=4)
    weights = stats.to_samples(NearestNeighbours(GateConfig(neighbours=5), 0)(stats))
    logprob = np.where(stats.available, stats.per_sample(stats.label_logprob), LEAST_LOGPROB)
    assert stats.state is not None
    found = neighbour_accuracy(stats.state.tolist(), [True] * 30, logprob.tolist(), 5)
    record = np.where(stats.available, np.array(found)[..., 1], -np.inf)
    right = np.eye(4)
    right[0, 0] = 0  # where the learning model is best there is no teacher
    np.testing.assert_allclose(weights, right[record.argmax(1)], atol=1e-6)


def test_who_has_no_rows_here_is_not_chosen(stats: StackedStats) -> None:
    """Even if he is the best on all samples like it."""
    usable, prob = stats.usable.copy(), stats.label_logprob.copy()
    prob[:, 2] = 0.0
    usable[:, 2] = True
    usable[stats.sample_of_row == 4, 2] = False
    found = replace(stats, usable=usable, label_logprob=np.where(usable, prob, 0))
    weights = found.to_samples(NearestNeighbours(GateConfig(neighbours=6), 0)(found))
    assert [i for i, w in enumerate(weights) if w[2] < 1] == [4]
    assert weights.sum(1) == pytest.approx(1)


def test_neighbours_find_who_knows() -> None:
    stats, expert = two_domains(np.random.default_rng(0), 200, (-0.5, -2.0), own=-1.5)
    found = NearestNeighbours(GateConfig(), 0)(stats)
    assert (found.argmax(1) == expert).mean() > 0.97
    assert (min_ce(stats).argmax(1) == expert).mean() < 0.9


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 11), st.floats(-9, 0), st.integers(0, 100))
def test_a_label_does_not_reach_the_weights_of_its_sample(
    sample: int, logprob: float, seed: int
) -> None:
    stats = made_up(np.random.default_rng(seed), samples=12, candidates=4)
    moved = stats.label_logprob.copy()
    moved[stats.sample_of_row == sample] = logprob
    nearest = NearestNeighbours(GateConfig(neighbours=3), 0)
    one, other = (nearest(x) for x in (stats, replace(stats, label_logprob=moved)))
    if one.any() and other.any():
        here = stats.sample_of_row == sample
        np.testing.assert_array_equal(one[here], other[here])


def test_the_oracle(stats: StackedStats) -> None:
    column = np.arange(12) % 4
    weights = stats.to_samples(oracle_rule(column)(stats))
    np.testing.assert_allclose(weights, np.eye(4)[column])
    assert not oracle_rule(np.zeros(12, dtype=np.int64))(stats).any()  # nobody knows better


def test_samples_without_rows_have_no_weight(stats: StackedStats) -> None:
    offsets = stats.offsets.copy()
    offsets[4] = offsets[3]
    moved = replace(stats, offsets=offsets)
    weights = np.ones((12, 4), dtype=np.float32)
    found = moved.to_samples(moved.to_rows(weights))
    assert found[:, 0].tolist() == [float(i != 3) for i in range(12)]


def test_trust_in_oneself_alone_teaches_nothing() -> None:
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
    with pytest.raises(
        FedfuseError, match=r"expected .* shape \(12, 4\) or \(\d+, 4\), not negative, got"
    ):
        row_weights(wrong(stats.loss), stats)


def test_weights_of_samples_are_spread_over_their_rows(stats: StackedStats) -> None:
    weights = stats.loss
    np.testing.assert_array_equal(row_weights(weights, stats), weights[stats.sample_of_row])
    rows = stats.to_rows(weights)
    assert row_weights(rows, stats) is rows


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_rule_is_found_by_its_name(name: str, stats: StackedStats) -> None:
    found = find_rule(name)
    made = found.make(GateConfig(steps=1), 0)
    assert found.name == name
    assert found.reference
    assert found.learns == isinstance(made, LearningRule) == (name == "learned-gate")
    assert row_weights(made(stats), stats).shape == stats.usable.shape


def test_labels_only_has_no_teacher(stats: StackedStats) -> None:
    assert not labels_only(stats).any()


def test_a_rule_that_learns_is_made_for_each_model() -> None:
    first, second = (find_rule("learned-gate").make(GateConfig(), seed) for seed in (0, 0))
    assert isinstance(first, LearnedGate)
    assert first is not second
    assert find_rule("min-ce").make(GateConfig(), 0) is min_ce


def test_a_name_is_given_once() -> None:
    with pytest.raises(FedfuseError, match="expected a new name, got 'uniform'"):
        rule("uniform", reference="")(labels_only)


def test_a_function_of_ones_own_is_a_rule(stats: StackedStats) -> None:
    own = find_rule("tests.fusion.example_stats:first_teacher")
    assert not own.learns
    weights = row_weights(own.make(GateConfig(), 0)(stats), stats)
    assert (weights == np.eye(4)[1]).all()
    assert find_rule("fedfuse.fusion.rules:min_ce") is RULES["min-ce"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("min-ec", "got 'min-ec'"),
        ("", "got ''"),
        (":x", "got ':x'"),
        ("no_such_module:x", "No module named 'no_such_module'"),
        ("tests.fusion.example_stats:absent", "has no attribute 'absent'"),
        ("tests.fusion:__doc__", "which is None"),
    ],
)
def test_unknown_rules_are_refused(name: str, why: str) -> None:
    with pytest.raises(
        FedfuseError, match="fusion rule: expected dual-min-ce, min-ce, "
    ) as refused:
        find_rule(name)
    assert why in str(refused.value)

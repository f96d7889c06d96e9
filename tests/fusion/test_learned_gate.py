"""The gate learns, forgets nothing, and looks at no label that it weighs."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfuse.config.gate import FEATURES, GateConfig
from fedfuse.errors import FedfuseError
from fedfuse.fusion.gating.learned_gate import LearnedGate, assign_folds
from fedfuse.fusion.gating.networks import feedback_loss
from fedfuse.fusion.gating.training import build_inputs, gate_loss, new_gates, train_gates
from fedfuse.fusion.rules import dual_min_ce, min_ce
from fedfuse.fusion.teacher_stats import StackedStats
from tests.fusion.example_stats import made_up, two_domains
from tests.fusion.test_gate_features import take
from tests.oracles import gate as oracle

PLAIN = GateConfig(steps=20)


def on_expert(weights: np.ndarray, expert: np.ndarray) -> float:
    return float(weights[np.arange(len(expert)), expert].mean())


def test_it_learns_whom_to_trust_where_a_single_label_misleads() -> None:
    stats, expert = two_domains(np.random.default_rng(0), 120, (-1.0, -2.5), own=-3.0)
    gate = LearnedGate(GateConfig(), seed=0)
    first = on_expert(gate(stats), expert)
    weights = [gate(stats) for _ in range(2)][-1]
    assert gate.last is not None
    by_label = on_expert(min_ce(stats), expert)
    assert on_expert(weights, expert) > 0.97 > 0.9 > by_label
    assert on_expert(weights, expert) >= first
    np.testing.assert_allclose(gate.last.importance.sum(), 1, rtol=1e-5)


def test_training_lowers_the_held_out_loss() -> None:
    stats, _ = two_domains(np.random.default_rng(1), 120, (-1.0, -2.5), own=-3.0)
    gate = LearnedGate(GateConfig(), seed=0)
    gate(stats)
    assert gate.last is not None
    assert gate.last.after < gate.last.before - 0.05


def test_where_all_are_worse_than_oneself_nobody_teaches() -> None:
    stats, _ = two_domains(np.random.default_rng(2), 120, (-4.0, -4.5), own=-1.0)
    gate = LearnedGate(GateConfig(), seed=0)
    weights = [gate(stats) for _ in range(3)][-1]
    assert not weights.any()
    # A rule that believes single labels is taught nevertheless.
    assert dual_min_ce(stats).any()


def test_one_candidate_has_weight_one_and_teaches_nobody() -> None:
    stats = made_up(np.random.default_rng(3), 10, 1)
    gate = LearnedGate(PLAIN, seed=0)
    assert not gate(stats).any()
    assert gate.last is not None
    assert gate.last.importance.tolist() == [1]


def test_weights_are_distributions() -> None:
    stats = made_up(np.random.default_rng(4), 40, 4)
    weights = LearnedGate(PLAIN, seed=0)(stats)
    assert weights.shape == stats.usable.shape
    assert weights.dtype == np.float32
    assert weights[:, 1:].any()
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    first = np.repeat(stats.offsets[:-1], np.diff(stats.offsets))
    np.testing.assert_array_equal(weights, weights[first])
    assert not weights[~stats.to_rows(stats.available)].any()


@settings(max_examples=8, deadline=None)
@given(st.permutations(range(1, 5)))
def test_permuted_candidates_have_permuted_weights(order: list[int]) -> None:
    """Through features, training and threshold."""
    stats = made_up(np.random.default_rng(5), 30, 5)
    columns = [0, *order]
    plain, permuted = (
        LearnedGate(replace(PLAIN, steps=5), seed=0)(e) for e in (stats, take(stats, columns))
    )
    np.testing.assert_allclose(permuted, plain[:, columns], atol=2e-3)


def test_candidates_may_come_and_go() -> None:
    rng = np.random.default_rng(6)
    gate = LearnedGate(PLAIN, seed=0)
    for candidates in (3, 5, 2):
        weights = gate(made_up(np.random.default_rng(7), 20, candidates))
        assert weights.shape[1] == candidates
    fixed = LearnedGate(replace(PLAIN, network="perceptron"), seed=0)
    fixed(made_up(rng, 20, 3))
    with pytest.raises(FedfuseError, match="expected 3 candidates in every round, got 4"):
        fixed(made_up(rng, 20, 4))


def test_other_samples_are_refused() -> None:
    gate = LearnedGate(PLAIN, seed=0)
    gate(made_up(np.random.default_rng(0), 20, 3))
    with pytest.raises(
        FedfuseError, match="expected the 20 samples that it was trained on, got 21"
    ):
        gate(made_up(np.random.default_rng(0), 21, 3))


def test_no_sample_is_weighed_by_a_gate_that_saw_its_label() -> None:
    """Whatever the labels of a fold are, its weights stay the same; in all rounds."""
    stats = made_up(np.random.default_rng(8), 40, 4)
    mine = np.isin(stats.sample_of_row, np.flatnonzero(assign_folds(40, PLAIN.folds, seed=0) == 2))
    changed = stats.label_logprob.copy()
    changed[mine] = np.random.default_rng(9).uniform(-5, -0.1, changed[mine].shape)
    other = replace(stats, label_logprob=changed.astype(np.float32))
    gates = [LearnedGate(PLAIN, seed=0) for _ in range(2)]
    for _ in range(2):
        first, second = (s(e) for s, e in zip(gates, (stats, other), strict=True))
        np.testing.assert_array_equal(first[mine], second[mine])
    assert (first[~mine] != second[~mine]).any()
    # Without folds they do not.
    first, second = (LearnedGate(replace(PLAIN, folds=1), seed=0)(e) for e in (stats, other))
    assert (first[mine] != second[mine]).any()


@pytest.mark.parametrize("network", ["equivariant", "perceptron"])
def test_it_goes_on_bit_for_bit(network: str) -> None:
    # Fewer rows a step than there are, so that the order of batches matters too.
    chosen = replace(PLAIN, network=network, batch_size=16)
    rounds = [made_up(np.random.default_rng(10 + n), 30, 4) for n in range(3)]
    whole = LearnedGate(chosen, seed=1)
    right = [whole(e) for e in rounds]
    cut = LearnedGate(chosen, seed=1)
    for e in rounds[:2]:
        cut(e)
    kept = {name: value.copy() for name, value in cut.state().items()}
    assert all(isinstance(v, np.ndarray) and v.dtype != object for v in kept.values())
    cut(rounds[2])  # what is kept does not change with its origin
    resumed = LearnedGate(chosen, seed=1)
    resumed.load(kept)
    np.testing.assert_array_equal(resumed(rounds[2]), right[2])
    for name, value in whole.state().items():
        np.testing.assert_array_equal(resumed.state()[name], value, err_msg=name)
    moved = [n for n in kept if n.startswith("gate/") and (kept[n] != whole.state()[n]).any()]
    assert moved  # weights change in training


def test_a_fresh_state_can_be_loaded() -> None:
    resumed = LearnedGate(PLAIN, seed=1)
    resumed.load(LearnedGate(PLAIN, seed=1).state())
    stats = made_up(np.random.default_rng(0), 20, 3)
    right = LearnedGate(PLAIN, seed=1)(stats)
    np.testing.assert_array_equal(resumed(stats), right)


def test_a_state_of_another_kind_is_refused() -> None:
    gate = LearnedGate(PLAIN, seed=0)
    gate(made_up(np.random.default_rng(0), 20, 3))
    for change in ({"network": "perceptron"}, {"width": 5}, {"folds": 6}):
        with pytest.raises(FedfuseError, match="gate state: expected"):
            LearnedGate(replace(PLAIN, **change), seed=0).load(gate.state())


def test_losses_equal_the_oracle() -> None:
    stats = made_up(np.random.default_rng(11), 25, 4)
    inputs = build_inputs(stats, PLAIN, np.ones((1, 25), dtype=bool))
    rows = torch.arange(0, len(stats.usable), 2)
    log_gate = torch.log_softmax(torch.randn(1, 4, len(rows), dtype=torch.float64), 1)
    gate, usable = log_gate[0].mT.exp().tolist(), stats.usable[rows].tolist()
    right = oracle.mixture_nats(gate, usable, stats.label_logprob[rows].tolist())
    found = gate_loss(log_gate, inputs, rows, "labels")
    assert found.shape == (1, len(rows))
    assert found.mean().item() == pytest.approx(right, rel=1e-5)
    cross = [
        sum(g * n for g, n, u in zip(*row, strict=True) if u)
        / sum(g for g, u in zip(row[0], row[2], strict=True) if u)
        for row in zip(gate, stats.cross_entropy_to_student[rows].tolist(), usable, strict=True)
    ]
    found = gate_loss(log_gate, inputs, rows, "distillation")
    np.testing.assert_allclose(found[0], cross, rtol=1e-5)


@pytest.mark.parametrize("network", ["equivariant", "perceptron"])
def test_gates_side_by_side_learn_as_each_would_alone(network: str) -> None:
    """Against one network, one optimizer and one fold's rows at a time."""
    stats = made_up(np.random.default_rng(13), 24, 4)
    chosen = replace(PLAIN, network=network, steps=4, feedback=0.3)
    folds = assign_folds(24, chosen.folds, seed=3)
    known = folds != np.arange(chosen.folds)[:, None]
    inputs = build_inputs(stats, chosen, known)
    gates = new_gates(chosen, 4, inputs.features.shape[3], seed=3)
    optimizer = torch.optim.AdamW(gates.parameters(), lr=0.01, weight_decay=0.1)
    train_gates(gates, optimizer, inputs, chosen, np.random.default_rng(0))
    for k in range(chosen.folds):
        alone = new_gates(replace(chosen, folds=1), 4, inputs.features.shape[3], seed=3 + k)
        mine = torch.optim.AdamW(alone.parameters(), lr=0.01, weight_decay=0.1)
        rows = torch.from_numpy(np.flatnonzero(known[k][stats.sample_of_row]))
        samples = torch.unique(inputs.sample_of_row[rows])
        for _ in range(chosen.steps):
            log_gate = alone(inputs.features[k : k + 1], inputs.usable)[0]
            seen = gate_loss(log_gate[None, :, inputs.sample_of_row[rows]], inputs, rows, "labels")
            loss = seen.mean() + 0.3 * feedback_loss(log_gate[:, samples].mT.exp())
            mine.zero_grad()
            loss.backward()
            mine.step()
        torch.testing.assert_close(
            gates(inputs.features, inputs.usable)[k],
            alone(inputs.features[k : k + 1], inputs.usable)[0],
            atol=1e-4,
            rtol=1e-4,
        )


def test_the_papers_loss_follows_what_the_learning_model_finds_easy() -> None:
    stats, _ = two_domains(np.random.default_rng(12), 60, (-1.0, -2.5), own=-3.0)
    easy = stats.cross_entropy_to_student.copy()
    easy[:, 2] = 0.1
    # What differs between candidates must be seen: the second has a small entropy as well.
    told = stats.entropy.copy()
    told[:, 2] = 0.2
    features = "entropy"
    chosen = GateConfig(loss="distillation", features=features, feedback=0, steps=150)
    gate = LearnedGate(chosen, seed=0)
    weights = gate(replace(stats, cross_entropy_to_student=easy, entropy=told))
    assert weights[:, 2].mean() > 0.9


def test_an_untrained_gate_is_seeded_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, second = (new_gates(PLAIN, 4, 6, seed=5) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_each_feature_can_be_switched_off() -> None:
    stats: StackedStats = made_up(np.random.default_rng(13), 20, 3)
    for name in FEATURES:
        left = tuple(f for f in FEATURES if f != name)
        for features in (left, (name,)):
            chosen = replace(PLAIN, features=", ".join(features), steps=1)
            gate = LearnedGate(chosen, seed=0)
            assert gate(stats).shape == stats.usable.shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "deep"}, "network: expected 'equivariant', 'perceptron', got 'deep'"),
        ({"loss": "x"}, "loss: expected 'labels', 'distillation', got 'x'"),
        ({"features": ""}, "features: expected .* got ''"),
        ({"features": "mood"}, "features: expected one or more of context-loss, .* got 'mood'"),
        ({"folds": 0}, "folds: expected at least 1, got 0"),
        ({"threshold": 1.0}, "threshold: expected at least 0, at most 0.99, got 1.0"),
        ({"feedback": -1.0}, "feedback: expected at least 0, got -1.0"),
        ({"learning_rate": 0.0}, "learning-rate: expected above 0, got 0.0"),
    ],
)
def test_settings_are_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(FedfuseError, match=message.replace("(", r"\(")):
        GateConfig(**change)  # type: ignore[arg-type]


def test_thirty_two_candidates_cost_little() -> None:
    stats = made_up(np.random.default_rng(14), 480, 33)
    gate = LearnedGate(GateConfig(), seed=0)
    started = time.process_time()
    gate(stats)
    assert time.process_time() - started < 10

"""Selection networks, threshold and feedback loss: by hand, by oracle, and under permutation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfuse.fusion.network import (
    EquivariantNetwork,
    Perceptron,
    dynamic_selection,
    feedback_loss,
)
from tests.oracles import selection as oracle


def test_the_papers_perceptron_has_its_layers() -> None:
    gate = Perceptron(5)
    shapes = [tuple(p.shape) for name, p in gate.named_parameters() if name.endswith("weight")]
    assert shapes == [(10, 5), (5, 10), (5, 5)]
    found = gate(torch.rand(7, 5, 1), torch.ones(7, 5, dtype=torch.bool)).exp()
    torch.testing.assert_close(found.sum(1), torch.ones(7))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.permutations(range(1, 6)))
def test_permuted_candidates_have_permuted_weights(seed: int, order: list[int]) -> None:
    """The learning model stays first; it always counts as usable."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    gate = EquivariantNetwork(3, 8)
    features = torch.randn(9, 6, 3, generator=generator)
    usable = torch.rand(9, 6, generator=generator) < 0.7
    columns = [0, *order]
    with torch.no_grad():
        plain = dynamic_selection(gate(features, usable).exp(), 0.15)
        permuted = dynamic_selection(gate(features[:, columns], usable[:, columns]).exp(), 0.15)
    torch.testing.assert_close(permuted, plain[:, columns])
    assert (plain[:, 1:][~usable[:, 1:]] == 0).all()


def test_it_takes_any_number_of_candidates() -> None:
    gate = EquivariantNetwork(2, 4)
    for candidates in (1, 2, 33):
        usable = torch.ones(3, candidates, dtype=torch.bool)
        found = gate(torch.randn(3, candidates, 2), usable).exp()
        torch.testing.assert_close(found.sum(1), torch.ones(3))


def test_nobody_usable_leaves_the_learning_model() -> None:
    for gate in (Perceptron(3), EquivariantNetwork(1, 4)):
        found = gate(torch.randn(2, 3, 1), torch.zeros(2, 3, dtype=torch.bool)).exp()
        torch.testing.assert_close(found, torch.tensor([[1.0, 0, 0]] * 2))


def test_threshold_by_hand() -> None:
    gate = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.14, 0.12, 0.12, 0.12], [0.15, 0.85, 0, 0]])
    right = torch.tensor([[0.625, 0.375, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]])
    torch.testing.assert_close(dynamic_selection(gate, 0.15), right)
    assert dynamic_selection(torch.ones(2, 1), 0.5).tolist() == [[1], [1]]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.sampled_from([0.0, 0.15, 0.3, 0.9]))
def test_equals_the_oracle(seed: int, candidates: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    gate = rng.dirichlet(np.ones(candidates), size=6)
    weights = dynamic_selection(torch.from_numpy(gate), threshold)
    right = [oracle.dynamic_selection(row, threshold) for row in gate.tolist()]
    np.testing.assert_allclose(weights.numpy(), right)
    expected = oracle.feedback_loss(right)
    assert feedback_loss(weights).item() == pytest.approx(expected, abs=1e-9)


def test_feedback_by_hand() -> None:
    """Importances 2, 1 and 0: variance 2/3 around 1."""
    weights = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    assert feedback_loss(weights).item() == pytest.approx(2 / 3)
    assert feedback_loss(torch.full((4, 5), 0.2)).item() == pytest.approx(0, abs=1e-12)
    assert feedback_loss(torch.rand(4, 1)).item() == 0

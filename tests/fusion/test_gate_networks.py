"""Gating networks, threshold and feedback loss: by hand, by oracle, and under permutation."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedfuse.fusion.gating.networks import (
    BatchedEquivariant,
    BatchedPerceptron,
    dynamic_selection,
    feedback_loss,
)
from tests.oracles import gate as oracle


def test_the_papers_perceptron_has_its_layers() -> None:
    gates = BatchedPerceptron(5, [0, 1])
    shapes = [tuple(p.shape) for name, p in gates.named_parameters() if name.endswith("weight")]
    assert shapes == [(2, 10, 5), (2, 5, 10), (2, 5, 5)]
    found = gates(torch.rand(2, 5, 7, 1), torch.ones(5, 7, dtype=torch.bool)).exp()
    torch.testing.assert_close(found.sum(1), torch.ones(2, 7))


@pytest.mark.parametrize("network", ["perceptron", "equivariant"])
def test_networks_side_by_side_are_those_of_their_seeds(network: str) -> None:
    """Against layers of torch, one network at a time."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 4, 7, 1 if network == "perceptron" else 5, generator=generator)
    usable = torch.rand(4, 7, generator=generator) < 0.7
    usable[0] = True
    seeds = [4, 9, 2]
    gates = (
        BatchedPerceptron(4, seeds) if network == "perceptron" else BatchedEquivariant(5, 6, seeds)
    )
    for found, seed, mine in zip(gates(features, usable), seeds, features, strict=True):
        torch.manual_seed(seed)
        one = perceptron if network == "perceptron" else equivariant
        scores = one(mine.transpose(0, 1), usable.T)
        right = torch.log_softmax(scores.masked_fill(~usable.T, -1e9), dim=1)
        torch.testing.assert_close(found, right.T)


def perceptron(features: torch.Tensor, usable: torch.Tensor) -> torch.Tensor:
    n = features.shape[1]
    sizes = (n, 2 * n, n, n)
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    first, second, third = layers
    return third(nn.functional.gelu(second(nn.functional.gelu(first(features[:, :, 0])))))


def equivariant(features: torch.Tensor, usable: torch.Tensor) -> torch.Tensor:
    embed, mix, score = nn.Linear(5, 6), nn.Linear(12, 6), nn.Linear(6, 1, bias=False)
    found = torch.empty(features.shape[:2])
    for unit, here in enumerate(usable):
        hidden = nn.functional.gelu(embed(features[unit]))
        both = torch.cat([hidden, hidden[here].mean(0).expand_as(hidden)], dim=1)
        found[unit] = score(nn.functional.gelu(mix(both)))[:, 0]
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.permutations(range(1, 6)))
def test_permuted_candidates_have_permuted_weights(seed: int, order: list[int]) -> None:
    """The learning model stays first; it always counts as usable."""
    generator = torch.Generator().manual_seed(seed)
    gate = BatchedEquivariant(3, 8, [seed])
    features = torch.randn(1, 6, 9, 3, generator=generator)
    usable = torch.rand(6, 9, generator=generator) < 0.7
    columns = [0, *order]
    with torch.no_grad():
        plain = dynamic_selection(gate(features, usable)[0].mT.exp(), 0.15)
        permuted = gate(features[:, columns], usable[columns])[0]
        permuted = dynamic_selection(permuted.mT.exp(), 0.15)
    torch.testing.assert_close(permuted, plain[:, columns])
    assert (plain[:, 1:][~usable.T[:, 1:]] == 0).all()


def test_it_takes_any_number_of_candidates() -> None:
    gate = BatchedEquivariant(2, 4, [0])
    for candidates in (1, 2, 33):
        usable = torch.ones(candidates, 3, dtype=torch.bool)
        found = gate(torch.randn(1, candidates, 3, 2), usable).exp()
        torch.testing.assert_close(found.sum(1), torch.ones(1, 3))


def test_nobody_usable_leaves_the_learning_model() -> None:
    for gate in (BatchedPerceptron(3, [0]), BatchedEquivariant(1, 4, [0])):
        found = gate(torch.randn(1, 3, 2, 1), torch.zeros(3, 2, dtype=torch.bool)).exp()
        torch.testing.assert_close(found, torch.tensor([[[1.0, 1], [0, 0], [0, 0]]]))


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

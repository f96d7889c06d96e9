"""The joint loss and its gradient equal a dense double-precision version."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedfuse.config.training import Objective
from fedfuse.distillation.loss import DistillationTargets, distillation_loss
from fedfuse.sparse import SparseDistribution
from tests.oracles.loss import joint_loss

VOCAB = 11


def random_teacher(
    rng: np.random.Generator, rows: int, k: int, *, tail: bool
) -> DistillationTargets:
    indices = np.stack([rng.permutation(VOCAB)[:k] for _ in range(rows)])
    mass = rng.dirichlet(np.ones(k + 1), size=rows).astype(np.float32)
    if not tail:
        mass[:, -1] = 0
        mass /= mass.sum(1, keepdims=True)
    weight = rng.choice([0.0, 0.3, 1.0], size=rows).astype(np.float32)
    return targets(indices, mass[:, :-1], mass[:, -1], weight)


def targets(indices: object, probs: object, tail: object, weight: object) -> DistillationTargets:
    as32 = lambda a: torch.from_numpy(np.array(a, dtype=np.float32))  # noqa: E731
    return DistillationTargets(
        torch.from_numpy(np.array(indices, dtype=np.int64)), as32(probs), as32(tail), as32(weight)
    )


def by_token(teacher: DistillationTargets) -> list[dict[int, float]]:
    """Each row as a dictionary, normalised in double precision."""
    rows = []
    for indices, probs, tail in zip(teacher.indices, teacher.probs, teacher.tail, strict=True):
        row: dict[int, float] = {}
        for token, p in zip(indices.tolist(), probs.double().tolist(), strict=True):
            row[token] = row.get(token, 0.0) + p
        total = sum(row.values()) + float(tail)
        rows.append({token: p / total for token, p in row.items()})
    return rows


def with_gradient(logits: Tensor, compute: object) -> tuple[float, Tensor]:
    leaf = logits.clone().requires_grad_()
    loss = compute(leaf)  # type: ignore[operator]
    loss.backward()
    assert leaf.grad is not None
    return loss.item(), leaf.grad


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, VOCAB - 1), st.floats(0, 1), st.booleans())
def test_equals_the_dense_oracle(seed: int, k: int, share: float, tail: bool) -> None:
    rng = np.random.default_rng(seed)
    teacher = random_teacher(rng, rows=4, k=k, tail=tail)
    logits = torch.from_numpy(rng.normal(0, 3, (4, VOCAB)))
    label = torch.from_numpy(rng.integers(VOCAB, size=4))
    found = with_gradient(logits, lambda x: distillation_loss(x, label, teacher, Objective(share)))
    weight = teacher.weight.double().tolist()
    kept = by_token(teacher)
    right = with_gradient(logits, lambda x: joint_loss(x, label.tolist(), kept, weight, share))
    assert found[0] == pytest.approx(right[0], rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(found[1], right[1], rtol=1e-3, atol=1e-5)


def test_gradcheck() -> None:
    rng = np.random.default_rng(0)
    teacher = random_teacher(rng, rows=3, k=4, tail=True)
    logits = torch.from_numpy(rng.normal(size=(3, VOCAB))).requires_grad_()
    label = torch.tensor([1, 5, 9])
    # The loss computes in float32, hence a wide step and tolerance.
    assert torch.autograd.gradcheck(
        lambda x: distillation_loss(x, label, teacher, Objective(0.3)).double(),
        logits,
        eps=1e-2,
        atol=2e-3,
    )


def test_by_hand() -> None:
    """Student uniform over four tokens; the tail's bucket holds two of them."""
    teacher = targets([[2, 0]], [[0.5, 0.25]], [0.25], [0.5])
    loss = distillation_loss(torch.zeros(1, 4), torch.tensor([3]), teacher, Objective(0.4))
    right = 0.4 * np.log(4) + 0.6 * 0.5 * (0.75 * np.log(4) + 0.25 * np.log(2))
    assert loss.item() == pytest.approx(right, rel=1e-6)


def test_labels_alone() -> None:
    logits = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0, 1, 2, 3, 10])
    cross_entropy = torch.nn.functional.cross_entropy(logits, label).item()
    assert distillation_loss(logits, label, None, Objective(0.2)).item() == pytest.approx(
        cross_entropy
    )
    teacher = random_teacher(np.random.default_rng(0), rows=5, k=3, tail=True)
    both = distillation_loss(logits, label, teacher, Objective(1.0)).item()
    assert both == pytest.approx(cross_entropy)
    nobody = replace(teacher, weight=torch.zeros(5))
    alone = distillation_loss(logits, label, nobody, Objective(0.2)).item()
    assert alone == pytest.approx(0.2 * cross_entropy)


def test_a_row_without_weight_has_the_gradient_of_its_label_alone() -> None:
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(1))
    label = torch.tensor([4, 5])
    teacher = targets([[1, 2], [1, 2]], [[0.6, 0.3], [0.6, 0.3]], [0.1, 0.1], [0, 1])
    _, gradient = with_gradient(
        logits, lambda x: distillation_loss(x, label, teacher, Objective(0.5))
    )
    _, alone = with_gradient(logits, lambda x: distillation_loss(x, label, None, Objective(1.0)))
    np.testing.assert_allclose(gradient[0], 0.5 * alone[0], atol=1e-7)
    assert not np.allclose(gradient[1], 0.5 * alone[1], atol=1e-3)


def test_padded_slots_are_harmless() -> None:
    """A slot that repeats another, with no mass of its own, changes nothing."""
    rng = np.random.default_rng(3)
    logits = torch.from_numpy(rng.normal(size=(1, VOCAB)))
    label = torch.tensor([0])
    short = targets([[3, 7]], [[0.5, 0.2]], [0.3], [1])
    padded = targets([[3, 7, 3, 7, 3]], [[0.5, 0.2, 0, 0, 0]], [0.3], [1])
    first = with_gradient(logits, lambda x: distillation_loss(x, label, short, Objective(0.1)))
    second = with_gradient(logits, lambda x: distillation_loss(x, label, padded, Objective(0.1)))
    assert first[0] == pytest.approx(second[0], rel=1e-12)
    np.testing.assert_allclose(first[1], second[1], rtol=1e-12)


def test_a_teacher_without_tail_is_the_papers_rule() -> None:
    """Eq. 9 and 10: cross-entropy against the softmax over the k kept entries."""
    rng = np.random.default_rng(4)
    logits, kept = torch.from_numpy(rng.normal(size=(2, VOCAB))), rng.normal(size=(2, 3))
    indices = np.array([[1, 2, 3], [9, 8, 7]])
    sparse = SparseDistribution(
        indices,
        kept.astype(np.float32),  # not normalised: top-k logits
        np.full(2, -np.inf, dtype=np.float32),
        np.ones(2, dtype=np.float32),
    )
    teacher = DistillationTargets.from_sparse(sparse, "cpu")
    loss = distillation_loss(logits, torch.tensor([0, 0]), teacher, Objective(0.0))
    right = 0.0
    for row in range(2):
        soft = torch.softmax(torch.from_numpy(kept[row]), 0)
        right -= float((soft * torch.log_softmax(logits[row], 0)[indices[row]]).sum()) / 2
    assert loss.item() == pytest.approx(right, rel=1e-5)


@pytest.mark.parametrize("k", [3, VOCAB])
def test_a_teacher_equal_to_the_student(k: int) -> None:
    """The loss is the teacher's entropy, its least possible value: the gradient vanishes."""
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(2))
    probs, indices = torch.softmax(logits, 1).topk(k)
    tail = (1 - probs.sum(1)).clamp(min=0) if k < VOCAB else torch.zeros(2)
    teacher = DistillationTargets(indices, probs, tail, torch.ones(2))
    loss, gradient = with_gradient(
        logits, lambda x: distillation_loss(x, torch.tensor([0, 1]), teacher, Objective(0.0))
    )
    everything = torch.cat([probs, tail[:, None]], 1).double()
    entropy = -torch.special.xlogy(everything, everything).sum(1).mean().item()
    assert loss == pytest.approx(entropy, rel=1e-5)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_a_far_tail_keeps_its_precision() -> None:
    """The student's mass outside is 1e-13 here: one minus the kept mass would be nothing."""
    logits = torch.tensor([[30.0, 0.0, 0.0]])
    teacher = targets([[0]], [[0.5]], [0.5], [1])
    loss = distillation_loss(logits, torch.tensor([0]), teacher, Objective(0.0))
    assert loss.item() == pytest.approx(0.5 * (30 - np.log(2)), rel=1e-5)

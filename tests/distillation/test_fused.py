"""The fused loss and its gradients equal a dense double-precision version, in little memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedfuse.config.training import DIVERGENCES, Objective
from fedfuse.distillation.fused import fused_distillation_loss
from fedfuse.distillation.loss import DistillationTargets, distillation_loss
from fedfuse.models.head import Head, rows_per_chunk
from tests.distillation.test_loss import by_token, targets
from tests.oracles.loss import joint_loss

WIDTH = 6
objectives = st.builds(
    Objective,
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from(DIVERGENCES),
    st.sampled_from([0.5, 1.0, 3.0]),
)
heads = st.fixed_dictionaries(
    {
        "bias": st.booleans(),
        "scale": st.sampled_from([1.0, 0.25, 3.0]),
        "softcap": st.sampled_from([None, 2.0]),
    }
)


def random_teacher(
    rng: np.random.Generator, rows: int, k: int, vocab: int, *, tail: bool, unused: int = 0
) -> DistillationTargets:
    """``k`` entries in ``k + unused`` slots."""
    indices = np.stack([rng.permutation(vocab)[:k] for _ in range(rows)])
    mass = rng.dirichlet(np.ones(k + 1), size=rows)
    if not tail:
        mass[:, -1] = 0
        mass /= mass.sum(1, keepdims=True)
    spare = np.pad(mass[:, :-1], ((0, 0), (0, unused)))
    repeats = indices[:, rng.integers(k, size=unused)]
    weight = rng.choice([0.0, 0.3, 1.0], size=rows)
    return targets(np.concatenate([indices, repeats], 1), spare, mass[:, -1], weight)


def random_head(rng: np.random.Generator, vocab: int, bias: bool = False, **more: Any) -> Head:
    weight = torch.from_numpy(rng.normal(size=(vocab, WIDTH))).requires_grad_()
    offsets = torch.from_numpy(rng.normal(size=vocab)).requires_grad_() if bias else None
    return Head(weight, offsets, **more)


def case(
    vocab: int = 11, rows: int = 7, k: int = 4
) -> tuple[Tensor, Head, Tensor, DistillationTargets]:
    rng = np.random.default_rng(0)
    hidden = torch.from_numpy(rng.normal(size=(rows, WIDTH))).requires_grad_()
    label = torch.from_numpy(rng.integers(vocab, size=rows))
    teacher = random_teacher(rng, rows, k, vocab, tail=True)
    return hidden, random_head(rng, vocab, bias=True), label, teacher


def single(tensor: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return tensor.detach().to(dtype).requires_grad_()


def as_type(hidden: Tensor, head: Head, dtype: torch.dtype) -> tuple[Tensor, Head]:
    bias = None if head.bias is None else single(head.bias, dtype)
    return single(hidden, dtype), replace(head, weight=single(head.weight, dtype), bias=bias)


def gradients(hidden: Tensor, head: Head) -> list[Tensor]:
    found = [t.grad for t in (hidden, head.weight, head.bias) if t is not None]
    assert all(g is not None for g in found)
    return [g for g in found if g is not None]


def assert_close(found: Tensor, right: Tensor, tolerance: float) -> None:
    """Relative to the largest value; where all are small they are differences of larger ones."""
    error = (found.double() - right).abs().max()
    assert error <= tolerance * max(right.abs().max().item(), 0.5)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 5),
    vocab=st.integers(2, 9),
    entries=st.integers(1, 9),
    unused=st.integers(0, 3),
    tail=st.booleans(),
    options=heads,
    objective=objectives,
    padding=st.integers(0, 2),
    chunk=st.integers(1, 6),
)
def test_equals_the_dense_oracle(
    seed: int,
    rows: int,
    vocab: int,
    entries: int,
    unused: int,
    tail: bool,
    options: dict[str, Any],
    objective: Objective,
    padding: int,
    chunk: int,
) -> None:
    rng = np.random.default_rng(seed)
    head = random_head(rng, vocab + padding, **options)
    hidden = torch.from_numpy(rng.normal(size=(rows, WIDTH))).requires_grad_()
    label = torch.from_numpy(rng.integers(vocab, size=rows))
    k = min(entries, vocab)
    teacher = random_teacher(rng, rows, k, vocab, tail=tail, unused=unused)
    right = joint_loss(
        head.cut(vocab).logits(hidden),
        label.tolist(),
        by_token(teacher),
        teacher.weight.double().tolist(),
        objective.label_weight,
        objective.divergence,
        objective.temperature,
    )
    right.backward()
    hidden32, head32 = as_type(hidden, head, torch.float32)
    found = fused_distillation_loss(
        hidden32, head32.cut(vocab), label, teacher, objective, chunk=chunk
    )
    found.backward()
    assert found.dtype == torch.float32
    assert_close(found.detach(), right.detach(), 1e-5)
    for mine, theirs in zip(gradients(hidden32, head32), gradients(hidden, head), strict=True):
        assert_close(mine, theirs, 1e-5)
    assert (head32.weight.grad[vocab:] == 0).all()  # type: ignore[index]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), heads, st.integers(1, 6))
def test_labels_alone_are_cross_entropy(seed: int, options: dict[str, Any], chunk: int) -> None:
    rng = np.random.default_rng(seed)
    head = random_head(rng, 9, **options)
    hidden = torch.from_numpy(rng.normal(size=(5, WIDTH))).requires_grad_()
    label = torch.from_numpy(rng.integers(9, size=5))
    right = torch.nn.functional.cross_entropy(head.logits(hidden), label)
    right.backward()
    hidden32, head32 = as_type(hidden, head, torch.float32)
    found = fused_distillation_loss(hidden32, head32, label, None, Objective(0.5), chunk=chunk)
    found.backward()
    assert_close(found.detach(), right.detach(), 1e-5)
    for mine, theirs in zip(gradients(hidden32, head32), gradients(hidden, head), strict=True):
        assert_close(mine, theirs, 1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradcheck(divergence: str) -> None:
    hidden, head, label, teacher = case()
    objective = Objective(0.3, divergence, 2.0)

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        used = Head(weight, bias, scale=0.7, softcap=3.0)
        # A factor, as in a sum of losses, reaches all gradients.
        return 3 * fused_distillation_loss(hidden, used, label, teacher, objective, chunk=3)

    assert torch.autograd.gradcheck(loss, (hidden, head.weight, head.bias))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [7, 3000])
def test_half_precision(dtype: torch.dtype, rows: int) -> None:
    """As exact as the type; also where a row's share of the mean is below float16's range."""
    hidden, head, label, teacher = case(rows=rows)
    fused_distillation_loss(hidden, head, label, teacher, Objective(0.3)).backward()
    half, half_head = as_type(hidden, head, dtype)
    loss = fused_distillation_loss(half, half_head, label, teacher, Objective(0.3), chunk=500)
    assert loss.dtype == torch.float32
    loss.backward()
    for mine, right in zip(gradients(half, half_head), gradients(hidden, head), strict=True):
        assert mine.dtype == dtype
        assert mine.isfinite().all()
        assert_close(mine, right, 8 * torch.finfo(dtype).eps)


def test_hidden_states_of_another_type_than_the_head() -> None:
    hidden, head, label, teacher = case()
    right = fused_distillation_loss(hidden, head, label, teacher, Objective(0.3))
    right.backward()
    half = single(hidden, torch.bfloat16)
    mixed = fused_distillation_loss(
        half, as_type(hidden, head, torch.float32)[1], label, teacher, Objective(0.3)
    )
    mixed.backward()
    assert mixed.item() == pytest.approx(right.item(), rel=1e-2)
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16


def test_autocast_changes_nothing() -> None:
    hidden, head, label, teacher = case()
    hidden, head = as_type(hidden, head, torch.float32)
    right = fused_distillation_loss(hidden, head, label, teacher, Objective(0.3))
    with torch.autocast("cpu", torch.bfloat16):
        found = fused_distillation_loss(hidden, head, label, teacher, Objective(0.3))
    assert found.item() == right.item()


def test_a_tail_beside_the_whole_vocabulary_is_no_class() -> None:
    """There is no token left that could have it: as if the teacher had not mentioned it."""
    hidden, head, label, _ = case(vocab=3)
    teacher = targets([[0, 2, 1]] * 7, [[0.5, 0.2, 0.1]] * 7, [0.2] * 7, [1] * 7)
    alone = targets([[0, 2, 1]] * 7, [[0.625, 0.25, 0.125]] * 7, [0] * 7, [1] * 7)
    right = fused_distillation_loss(hidden, head, label, alone, Objective(0.1))
    right.backward()
    other, other_head = as_type(hidden, head, torch.float64)
    found = fused_distillation_loss(other, other_head, label, teacher, Objective(0.1))
    found.backward()
    assert found.item() == pytest.approx(right.item(), rel=1e-6)
    for mine, theirs in zip(gradients(other, other_head), gradients(hidden, head), strict=True):
        assert_close(mine, theirs, 1e-6)
    dense = distillation_loss(head.logits(hidden), label, teacher, Objective(0.1))
    assert dense.item() == pytest.approx(right.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(dense, [hidden])
    assert_close(gradient, gradients(hidden, head)[0], 1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_row_that_nobody_teaches(divergence: str) -> None:
    """It has no mass at all; its label still counts."""
    hidden, head, label, _ = case(rows=1)
    nobody = targets([[0, 0]], [[0, 0]], [0], [0])
    objective = Objective(0.4, divergence, 2.0)
    found = fused_distillation_loss(hidden, head, label, nobody, objective)
    right = 0.4 * fused_distillation_loss(hidden, head, label, None, Objective(1.0))
    assert found.item() == pytest.approx(right.item(), rel=1e-9)
    gradient = torch.autograd.grad(found, [hidden])[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(right, [hidden])[0])


def test_a_far_tail_keeps_its_precision() -> None:
    """The student's mass outside is 1e-13 here: one minus the kept mass would be nothing."""
    head = Head(torch.tensor([[30.0], [0.0], [0.0]]))
    teacher = targets([[0]], [[0.5]], [0.5], [1])
    hidden = torch.ones(1, 1, requires_grad=True)
    loss = fused_distillation_loss(hidden, head, torch.tensor([0]), teacher, Objective(0.0))
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * (30 - np.log(2)), rel=1e-5)
    assert hidden.grad is not None
    assert hidden.grad.item() == pytest.approx(15, rel=1e-5)


def test_without_rows_nothing_is_lost_or_learnt() -> None:
    hidden, head, label, teacher = case()
    none = slice(0, 0)
    loss = fused_distillation_loss(hidden[none], head, label[none], teacher[none], Objective(0.3))
    loss.backward()
    assert loss.item() == 0
    assert all((g == 0).all() for g in gradients(hidden, head))
    assert (
        distillation_loss(head.logits(hidden[none]), label[none], None, Objective(1.0)).item() == 0
    )


class Largest(TorchDispatchMode):
    """Remembers how many elements the largest tensor had."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("trainable", [False, True])
def test_no_tensor_is_larger_than_a_chunk_of_logits(trainable: bool) -> None:
    vocab, rows, chunk = 500, 64, 8
    hidden, head, label, teacher = case(vocab, rows)
    if not trainable:
        head = Head(head.weight.detach())
    with Largest() as largest:
        fused_distillation_loss(
            hidden, head, label, teacher, Objective(0.3), chunk=chunk
        ).backward()
    assert largest.elements == vocab * chunk > vocab * WIDTH
    with Largest() as largest:
        distillation_loss(head.logits(hidden), label, teacher, Objective(0.3)).backward()
    assert largest.elements == vocab * rows


def test_gradients_are_formed_where_they_are_asked_for() -> None:
    hidden, head, label, teacher = case()
    asked = fused_distillation_loss(hidden, head, label, teacher, Objective(0.3))
    with torch.no_grad():
        loss = fused_distillation_loss(hidden, head, label, teacher, Objective(0.3), chunk=1)
    assert loss.item() == pytest.approx(asked.item(), rel=1e-9)
    assert not loss.requires_grad
    frozen = Head(head.weight.detach(), head.bias)
    fused_distillation_loss(hidden.detach(), frozen, label, teacher, Objective(0.3)).backward()
    assert hidden.grad is None
    assert head.bias is not None
    assert head.bias.grad is not None


def test_chunks_grow_with_the_device_and_shrink_with_the_vocabulary() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 1)
    assert rows_per_chunk(32_000, cpu) == (64 << 20) // 128_000
    assert rows_per_chunk(32_000, cuda) > rows_per_chunk(32_000, cpu)
    assert rows_per_chunk(1 << 40, cpu) == 1
    # A kind of device that is not known gets the small ones.
    assert rows_per_chunk(32_000, torch.device("meta")) == rows_per_chunk(32_000, cpu)

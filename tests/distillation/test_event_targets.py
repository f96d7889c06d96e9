"""The loss over events and its gradients equal a dense double-precision version."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfuse.config.training import DIVERGENCES, Objective
from fedfuse.distillation.event_targets import EventClasses, segment_logsumexp
from fedfuse.distillation.fused import fused_distillation_loss
from fedfuse.distillation.loss import DistillationTargets, distillation_loss
from fedfuse.events import EventDistribution, TeacherTargets, stack_events
from fedfuse.models.head import Head
from fedfuse.sparse import SparseDistribution
from tests.distillation.test_fused import (
    WIDTH,
    Largest,
    as_type,
    assert_close,
    gradients,
    heads,
    objectives,
    random_head,
)
from tests.oracles.events import Event, joint_loss


def random_events(
    rng: np.random.Generator, rows: int, k: int, vocab: int, *, complete: bool = False
) -> tuple[EventDistribution, list[list[tuple[Event, float]]]]:
    """Disjoint ranges of two permutations, and what they are.

    With tokens and a tail between and beside them or, complete, without.
    """
    orders = np.stack([rng.permutation(vocab) for _ in range(2)]).astype(np.int32)
    order = rng.integers(2, size=rows).astype(np.int32)
    start = np.zeros((rows, k), np.int32)
    stop = np.zeros((rows, k), np.int32)
    logs = np.full((rows, k), -np.inf, np.float32)
    tail = np.empty(rows, np.float32)
    said = []
    for row in range(rows):
        if complete:
            inner = rng.choice(np.arange(1, vocab), size=min(k, vocab) - 1, replace=False)
            cuts = np.repeat(np.sort(np.append(inner, [0, vocab])), 2)[1:-1]
        else:
            size = min(2 * k, vocab + 1) // 2 * 2
            cuts = np.sort(rng.choice(vocab + 1, size=size, replace=False))
        used = len(cuts) // 2
        mass = rng.dirichlet(np.ones(used + (not complete)))[:used]
        mass = np.sort(mass)[::-1]
        start[row, :used], stop[row, :used] = cuts[::2], cuts[1::2]
        logs[row, :used] = np.log(mass)
        tail[row] = -np.inf if complete else np.log(1 - mass.sum())
        ranges = [orders[order[row], a:b] for a, b in zip(cuts[::2], cuts[1::2], strict=True)]
        said.append([(frozenset(r.tolist()), float(p)) for r, p in zip(ranges, mass, strict=True)])
    weight = rng.choice([0.0, 0.5, 1.0], size=rows).astype(np.float32)
    return replace(
        EventDistribution.empty(orders, rows, k),
        order=order,
        start=start,
        stop=stop,
        logprobs=logs,
        tail_logprob=tail,
        weight=weight,
    ), said


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 6),
    vocab=st.integers(2, 12),
    k=st.integers(1, 4),
    complete=st.lists(st.booleans(), max_size=3),
    padding=st.integers(0, 2),
    chunk=st.integers(1, 7),
    options=heads,
    objective=objectives,
)
def test_equals_the_dense_oracle(
    seed: int,
    rows: int,
    vocab: int,
    k: int,
    complete: list[bool],
    padding: int,
    chunk: int,
    options: dict[str, Any],
    objective: Objective,
) -> None:
    """Teachers over tokens and over events, on every row some of them; gradients to 1e-5."""
    rng = np.random.default_rng(seed)
    classes, expected = random_targets(rng, rows, k, vocab, complete)
    head = random_head(rng, vocab + padding, **options)
    hidden = torch.from_numpy(rng.normal(size=(rows, WIDTH))).requires_grad_()
    label = torch.from_numpy(rng.integers(vocab, size=rows))
    right = joint_loss(head.logits(hidden), label.tolist(), expected, objective)
    right.backward()
    for dtype in (torch.float64, torch.float32):
        fused, dense = as_type(hidden, head, dtype), as_type(hidden, head, dtype)
        for mine, loss in (
            (fused, fused_distillation_loss(*fused, label, classes, objective, chunk=chunk)),
            (dense, distillation_loss(dense[1].logits(dense[0]), label, classes, objective)),
        ):
            loss.backward()
            assert_close(loss.detach(), right.detach(), 1e-5)
            for one, other in zip(gradients(*mine), gradients(hidden, head), strict=True):
                assert_close(one, other, 1e-5)


def random_targets(
    rng: np.random.Generator, rows: int, k: int, vocab: int, complete: list[bool]
) -> tuple[EventClasses, list[list[tuple[list[tuple[Event, float]], float]]]]:
    """A mixture over tokens, and for each of ``complete`` a teacher over events, in any order."""
    expected: list[list[tuple[list[tuple[Event, float]], float]]] = [[] for _ in range(rows)]
    k_tokens = min(k, vocab)
    mass = rng.dirichlet(np.ones(k_tokens + 1), size=rows)
    tokens = SparseDistribution(
        np.stack([rng.permutation(vocab)[:k_tokens] for _ in range(rows)]),
        np.log(mass[:, :-1]).astype(np.float32),
        np.log(mass[:, -1]).astype(np.float32),
        rng.choice([0.0, 0.3], size=rows).astype(np.float32),
    )
    for row in range(rows):
        entries = zip(tokens.indices[row].tolist(), mass[row, :-1].tolist(), strict=True)
        if tokens.weight[row]:
            events = [(frozenset([i]), p) for i, p in entries]
            expected[row].append((events, float(tokens.weight[row])))
    parts = [(np.arange(0), random_events(rng, 0, k, vocab)[0])]
    for without_tail in complete:
        taught = np.flatnonzero(rng.random(rows) < 0.7)
        part, said = random_events(rng, len(taught), k, vocab, complete=without_tail)
        parts.append((taught, part))
        for row, events, weight in zip(taught, said, part.weight.tolist(), strict=True):
            expected[row].append((events, weight))
    targets = TeacherTargets(tokens, stack_events(parts, rows))
    index = rng.permutation(rows)
    return EventClasses.from_targets(targets[index], "cpu"), [expected[i] for i in index]


def case(rows: int = 7, vocab: int = 11) -> tuple[torch.Tensor, Head, torch.Tensor, EventClasses]:
    rng = np.random.default_rng(0)
    classes, _ = random_targets(rng, rows, 3, vocab, [False, True, False])
    hidden = torch.from_numpy(rng.normal(size=(rows, WIDTH))).requires_grad_()
    head = random_head(rng, vocab, bias=True)
    return hidden, head, torch.from_numpy(rng.integers(vocab, size=rows)), classes


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradcheck(divergence: str) -> None:
    hidden, head, label, classes = case(rows=4, vocab=6)
    objective = Objective(0.3, divergence, 2.0)

    def loss(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        used = Head(weight, bias, scale=0.7, softcap=3.0)
        return 3 * fused_distillation_loss(hidden, used, label, classes, objective, chunk=3)

    assert torch.autograd.gradcheck(loss, (hidden, head.weight, head.bias))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [7, 3000])
def test_half_precision(dtype: torch.dtype, rows: int) -> None:
    hidden, head, label, classes = case(rows)
    fused_distillation_loss(hidden, head, label, classes, Objective(0.3)).backward()
    half, half_head = as_type(hidden, head, dtype)
    loss = fused_distillation_loss(half, half_head, label, classes, Objective(0.3), chunk=500)
    assert loss.dtype == torch.float32
    loss.backward()
    for mine, right in zip(gradients(half, half_head), gradients(hidden, head), strict=True):
        assert mine.dtype == dtype
        assert_close(mine, right, 8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("teachers", [1, 8])
def test_no_tensor_is_larger_than_a_chunk_of_logits(teachers: int) -> None:
    """Nothing of the size of the vocabulary for a teacher: their permutations are there before."""
    rng, rows, vocab, chunk = np.random.default_rng(0), 64, 5000, 16
    start = np.sort(rng.permutation(vocab // 10)[: 3 * rows].reshape(rows, 3) * 10).astype(np.int32)
    logs = np.full((rows, 3), np.log(0.3), np.float32)
    parts = []
    for _ in range(teachers):
        orders = rng.permutation(vocab).astype(np.int32)[None]
        ones = np.ones(rows, np.float32)
        events = replace(
            EventDistribution.empty(orders, rows, 3),
            start=start,
            stop=start + 5,
            logprobs=logs,
            tail_logprob=np.log(0.1 * ones),
            weight=ones / teachers,
        )
        parts.append((np.arange(rows), events))
    nobody = SparseDistribution.empty(rows, 1, 0.0)
    classes = EventClasses.from_targets(TeacherTargets(nobody, stack_events(parts, rows)), "cpu")
    hidden, head, label, _ = case(rows, vocab)
    with Largest() as largest:
        fused_distillation_loss(
            hidden, Head(head.weight.detach()), label, classes, Objective(0.3), chunk=chunk
        ).backward()
    assert largest.elements == vocab * chunk


def test_single_tokens_are_what_they_are_without_events() -> None:
    rng = np.random.default_rng(0)
    rows, vocab, k = 7, 11, 3
    mass = rng.dirichlet(np.ones(k + 1), size=rows).astype(np.float32)
    indices = np.stack([rng.permutation(vocab)[:k] for _ in range(rows)])
    logs, tail, weight = np.log(mass[:, :-1]), np.log(mass[:, -1]), np.full(rows, 0.5, np.float32)
    plain = SparseDistribution(indices, logs, tail, weight)
    orders = np.arange(vocab, dtype=np.int32)[None]
    start = indices.astype(np.int32)
    events = replace(
        EventDistribution.empty(orders, rows, k),
        start=start,
        stop=start + 1,
        logprobs=logs,
        tail_logprob=tail,
        weight=weight,
    )
    nobody = SparseDistribution.empty(rows, k, 0.0)
    both = TeacherTargets(nobody, stack_events([(np.arange(rows), events)], rows))
    logits = torch.from_numpy(rng.normal(size=(rows, vocab)).astype(np.float32))
    label = torch.from_numpy(rng.integers(vocab, size=rows))
    one = distillation_loss(
        logits, label, DistillationTargets.from_sparse(plain, "cpu"), Objective()
    )
    other = distillation_loss(logits, label, EventClasses.from_targets(both, "cpu"), Objective())
    torch.testing.assert_close(one, other)


def test_log_sum_exp_of_segments() -> None:
    values = torch.tensor([1.0, 800.0, -900.0, -901.0], requires_grad=True)
    found = segment_logsumexp(values, torch.tensor([0, 2, 3, 3]), 4)
    expected = torch.tensor([1.0, -torch.inf, 800.0, -900 + float(np.log1p(np.exp(-1)))])
    torch.testing.assert_close(found, expected)
    found[[0, 2, 3]].sum().backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    assert values.grad.isfinite().all()
    assert values.grad.sum() == pytest.approx(3)

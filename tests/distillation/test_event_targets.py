"""The loss over events and its gradients equal a dense double-precision version."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfuse.config.training import Objective
from fedfuse.distillation.event_targets import EventClasses, segment_logsumexp
from fedfuse.distillation.fused import fused_distillation_loss
from fedfuse.distillation.loss import DistillationTargets, distillation_loss
from fedfuse.events import EventDistribution, TeacherTargets, stack_events
from fedfuse.models.head import Head
from fedfuse.sparse import SparseDistribution
from tests.distillation.test_fused import objectives
from tests.oracles.events import Event, joint_loss

WIDTH = 5


def random_events(
    rng: np.random.Generator, rows: int, k: int, vocab: int
) -> tuple[EventDistribution, list[list[tuple[Event, float]]]]:
    """Disjoint ranges of two permutations, and what they are."""
    orders = np.stack([rng.permutation(vocab) for _ in range(2)]).astype(np.int32)
    order = rng.integers(2, size=rows).astype(np.int32)
    start = np.zeros((rows, k), np.int32)
    stop = np.zeros((rows, k), np.int32)
    logs = np.full((rows, k), -np.inf, np.float32)
    tail = np.empty(rows, np.float32)
    said = []
    for row in range(rows):
        cuts = np.sort(rng.choice(vocab + 1, size=min(2 * k, vocab + 1) // 2 * 2, replace=False))
        used = len(cuts) // 2
        mass = np.sort(rng.dirichlet(np.ones(used + 1))[:-1])[::-1]
        start[row, :used], stop[row, :used] = cuts[::2], cuts[1::2]
        logs[row, :used] = np.log(mass)
        tail[row] = np.log(1 - mass.sum())
        ranges = [orders[order[row], a:b] for a, b in zip(cuts[::2], cuts[1::2], strict=True)]
        said.append([(frozenset(r.tolist()), float(p)) for r, p in zip(ranges, mass, strict=True)])
    weight = rng.choice([0.0, 0.5, 1.0], size=rows).astype(np.float32)
    return EventDistribution(orders, order, start, stop, logs, tail, weight), said


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 6),
    vocab=st.integers(2, 12),
    k=st.integers(1, 4),
    teachers=st.integers(1, 3),
    padding=st.integers(0, 2),
    chunk=st.integers(1, 7),
    objective=objectives,
)
def test_equals_the_dense_oracle(
    seed: int,
    rows: int,
    vocab: int,
    k: int,
    teachers: int,
    padding: int,
    chunk: int,
    objective: Objective,
) -> None:
    rng = np.random.default_rng(seed)
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
    parts = []
    for _ in range(teachers):
        taught = np.flatnonzero(rng.random(rows) < 0.7)
        part, said = random_events(rng, len(taught), k, vocab)
        parts.append((taught, part))
        for row, events, weight in zip(taught, said, part.weight.tolist(), strict=True):
            expected[row].append((events, weight))
    targets = TeacherTargets(tokens, stack_events(parts, rows))
    index = rng.permutation(rows)
    classes = EventClasses.from_targets(targets[index], "cpu")

    head = Head(torch.from_numpy(rng.normal(size=(vocab + padding, WIDTH))).requires_grad_())
    hidden = torch.from_numpy(rng.normal(size=(rows, WIDTH))).requires_grad_()
    label = torch.from_numpy(rng.integers(vocab, size=rows))
    right = joint_loss(
        hidden @ head.weight.T, label.tolist(), [expected[i] for i in index], objective
    )
    wanted = torch.autograd.grad(right, [hidden, head.weight])
    for loss in (
        fused_distillation_loss(hidden, head, label, classes, objective, chunk=chunk),
        distillation_loss(hidden @ head.weight.T, label, classes, objective),
    ):
        torch.testing.assert_close(loss, right, rtol=1e-5, atol=1e-6)
        found = torch.autograd.grad(loss, [hidden, head.weight])
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_single_tokens_are_what_they_are_without_events() -> None:
    rng = np.random.default_rng(0)
    rows, vocab, k = 7, 11, 3
    mass = rng.dirichlet(np.ones(k + 1), size=rows).astype(np.float32)
    indices = np.stack([rng.permutation(vocab)[:k] for _ in range(rows)])
    logs, tail, weight = np.log(mass[:, :-1]), np.log(mass[:, -1]), np.full(rows, 0.5, np.float32)
    plain = SparseDistribution(indices, logs, tail, weight)
    orders = np.arange(vocab, dtype=np.int32)[None]
    start = indices.astype(np.int32)
    events = EventDistribution(
        orders, np.zeros(rows, np.int32), start, start + 1, logs, tail, weight
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

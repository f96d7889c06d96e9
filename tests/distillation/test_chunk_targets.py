"""The loss of chunks' likelihoods equals one written out in double precision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfuse.config.training import Objective
from fedfuse.distillation import targets as targets_module
from fedfuse.distillation.event_targets import (
    CHUNK_TEMPERATURE,
    EventClasses,
    likelihood_divergence,
)
from fedfuse.distillation.fused import fused_distillation_loss
from fedfuse.distillation.loss import distillation_loss
from fedfuse.distillation.targets import batch_losses
from fedfuse.events import EventDistribution, TeacherTargets, stack_events
from fedfuse.models.forward import label_row_logits
from fedfuse.models.head import Head
from fedfuse.sparse import SparseDistribution
from fedfuse.tokenizers.dataset import TokenizedDataset
from tests.conftest import Tiny
from tests.distillation.test_event_targets import random_events
from tests.distillation.test_fused import objectives
from tests.oracles.events import joint_loss

VOCAB, WIDTH = 7, 4


def chunks_of(rng: np.random.Generator, rows: int) -> list[tuple[int, int]]:
    """First row and number of rows of chunks that do not meet."""
    found, at = [], 0
    while at < rows:
        size = int(rng.integers(1, min(4, rows - at) + 1))
        if rng.random() < 0.6:
            found.append((at, size))
        at += size
    return found


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 8),
    teachers=st.integers(1, 3),
    k=st.integers(0, 3),
    chunk=st.integers(1, 9),
    objective=objectives,
)
def test_equals_the_loss_written_out(
    seed: int, rows: int, teachers: int, k: int, chunk: int, objective: Objective
) -> None:
    rng = np.random.default_rng(seed)
    expected: list[list[object]] = [[] for _ in range(rows)]
    parts, likelihoods = [], []
    for _ in range(teachers):
        if k:
            events, said = random_events(rng, rows, k, VOCAB)
        else:
            events = EventDistribution.empty(np.arange(VOCAB, dtype=np.int32)[None], rows, 0)
            said = [[] for _ in range(rows)]
        weight = rng.choice([0.0, 0.5, 1.0], size=rows).astype(np.float32)
        chunk_rows, logprob = np.zeros(rows, np.int32), np.zeros(rows, np.float32)
        for first, size in chunks_of(rng, rows):
            chunk_rows[first], logprob[first] = size, -rng.exponential()
            likelihoods.append((first, size, float(logprob[first]), float(weight[first])))
        events = replace(events, weight=weight, chunk_rows=chunk_rows, chunk_logprob=logprob)
        parts.append((np.arange(rows), events))
        for row in range(rows):
            expected[row].append((said[row], float(weight[row])))
    nobody = SparseDistribution.empty(rows, 1, tail_logprob=0.0)
    targets = TeacherTargets(nobody, stack_events(parts, rows))
    # All samples that the rows are of, one behind the other, as in a batch.
    classes = EventClasses.from_targets(targets[np.arange(rows)], "cpu")

    head = Head(torch.from_numpy(rng.normal(size=(VOCAB, WIDTH))).requires_grad_())
    hidden = torch.from_numpy(rng.normal(size=(rows, WIDTH))).requires_grad_()
    label = torch.from_numpy(rng.integers(VOCAB, size=rows))
    logits = hidden @ head.weight.T
    taught = expected if k else [[] for _ in range(rows)]
    right = joint_loss(logits, label.tolist(), taught, objective)  # type: ignore[arg-type]
    own = torch.log_softmax(logits, 1)[torch.arange(rows), label]
    for first, size, teacher, weight in likelihoods:
        student = own[first : first + size].sum()
        one, other = (
            torch.exp(torch.as_tensor(p, dtype=torch.float64) / CHUNK_TEMPERATURE)
            for p in (min(teacher, -1e-6), student)
        )
        apart = one * (one / other).log() + (1 - one) * ((1 - one) / (1 - other)).log()
        right = right + (1 - objective.label_weight) * weight * CHUNK_TEMPERATURE * apart / rows
    wanted = torch.autograd.grad(right, [hidden, head.weight])
    for loss in (
        fused_distillation_loss(hidden, head, label, classes, objective, chunk=chunk),
        distillation_loss(hidden @ head.weight.T, label, classes, objective),
    ):
        torch.testing.assert_close(loss, right, rtol=1e-5, atol=1e-6)
        found = torch.autograd.grad(loss, [hidden, head.weight])
        for mine, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_divergence_is_zero_at_the_teachers_likelihood_and_finite_everywhere() -> None:
    teacher = torch.tensor([-1e-9, -0.5, -40.0, -3.0, 0.0], dtype=torch.float64)
    assert likelihood_divergence(teacher, teacher).abs().max() < 1e-12
    student = torch.tensor([0.0, -300.0, 0.0, -1e-7, -50.0], dtype=torch.float64)
    student.requires_grad_()
    found = likelihood_divergence(student, teacher)
    assert (found >= 0).all()
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert student.grad.isfinite().all()
    # Pulled up where the student is less certain, by one a nat at most.
    assert -1 <= student.grad[1] < -0.9


def test_parts_cut_through_no_chunk() -> None:
    rows = 10
    events = EventDistribution.empty(np.arange(VOCAB, dtype=np.int32)[None], rows, 0)
    events.chunk_rows[[2, 5]] = 3, 4
    events.weight[:] = 1
    nobody = SparseDistribution.empty(rows, 1, tail_logprob=0.0)
    targets = TeacherTargets(nobody, stack_events([(np.arange(rows), events)], rows))
    classes = EventClasses.from_targets(targets, "cpu")
    found = [(part.start, part.stop) for part in classes.parts(4)]
    assert found == [(0, 5), (5, 9), (9, 10)]
    assert [(part.start, part.stop) for part in classes[5:10].parts(2)] == [(0, 4), (4, 5)]
    with pytest.raises(StopIteration):
        next(classes[3:3].parts(4))


@pytest.mark.parametrize("materialised", [False, True])
def test_chunks_of_a_batch_are_those_of_its_samples(
    gpt2: Tiny, data: TokenizedDataset, materialised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples of a batch come in any order; each sample's rows stay together."""
    if materialised:
        monkeypatch.setattr(targets_module, "label_row_states", lambda lm, batch: None)
    order = np.arange(data.tokenizer.vocab_size, dtype=np.int32)[None]
    events = EventDistribution.empty(order, len(data.rows.token), 0)
    first = data.rows.offsets[:-1]
    assert (np.diff(data.rows.offsets) >= 2).all()
    events.chunk_rows[first], events.weight[first] = 2, 1
    events.chunk_logprob[first] = -0.1 * np.arange(1, len(first) + 1)
    every = np.arange(len(events.weight))
    nobody = SparseDistribution.empty(len(every), 1, tail_logprob=0.0)
    teacher = TeacherTargets(nobody, stack_events([(every, events)], len(every)))
    drawn = np.array([5, 0, 3])
    batch = data.batch(drawn)
    loss, _ = batch_losses(gpt2, batch, teacher, Objective(0.0))
    expected = 0.0
    for sample in drawn:
        alone = data.batch(np.array([sample]))
        logits = label_row_logits(gpt2, alone)[:2].detach().log_softmax(1)
        own = logits.gather(1, alone.label[:2, None]).sum().double()
        said = torch.tensor(float(events.chunk_logprob[first[sample]]), dtype=torch.float64)
        expected += float(likelihood_divergence(own[None], said[None]))
    assert expected > 0.1
    assert loss.item() == pytest.approx(expected / len(batch.label), rel=1e-4)

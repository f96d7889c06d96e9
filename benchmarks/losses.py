"""Losses over a large vocabulary: plain, dense as public code has them, and the fused one.

Each is a step: loss and gradient by the hidden states, under a frozen head.
"""

from __future__ import annotations

import math
import multiprocessing
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from benchmarks.memory import peak_beyond
from fedfuse.alignment.event_rows import merge_events
from fedfuse.alignment.event_table import EventTable
from fedfuse.config.training import Objective
from fedfuse.distillation.event_targets import EventClasses
from fedfuse.distillation.fused import fused_distillation_loss
from fedfuse.distillation.loss import DistillationTargets
from fedfuse.events import EventDistribution, TeacherTargets
from fedfuse.fusion.event_mixing import fuse_rows
from fedfuse.fusion.mixing import mix
from fedfuse.models.head import Head
from fedfuse.sparse import SparseDistribution, safe_log

LABEL_WEIGHT = 0.1


@dataclass(frozen=True, slots=True)
class StepSize:
    """Size of a step: label rows, vocabulary, width of the hidden states, and the entries of a row
    that a teacher has and that are kept of all teachers.
    """

    rows: int = 512
    vocab: int = 32_000
    width: int = 512
    k: int = 16


class LossBench:
    """Hidden states, a head, labels, and teachers that agree on nothing, which is most to merge.

    With a table of events, all of them teach every row over events too.
    """

    def __init__(
        self, size: StepSize, teachers: int, seed: int, table: EventTable | None = None
    ) -> None:
        rng = np.random.default_rng(seed)
        self.size = size
        self.hidden = _normal(rng, size.rows, size.width).requires_grad_()
        self.weight = _normal(rng, size.vocab, size.width) / math.sqrt(size.width)
        self.label = torch.from_numpy(rng.integers(size.vocab, size=size.rows))
        self.teachers = [_teacher(rng, size) for _ in range(teachers)]
        if table:
            orders = table.order[None]
            self.event_teachers = [
                _event_teacher(rng, size, table, orders) for _ in range(teachers)
            ]

    def plain(self) -> Tensor:
        """Cross-entropy of the labels, over logits: what fine-tuning costs."""
        return self._step(cross_entropy(linear(self.hidden, self.weight), self.label))

    def dense(self) -> Tensor:
        """One dense target ``[rows, vocab]`` and one cross-entropy per teacher."""
        logits = linear(self.hidden, self.weight)
        loss = LABEL_WEIGHT * cross_entropy(logits, self.label)
        for teacher in self.teachers:
            target = torch.zeros(self.size.rows, self.size.vocab)
            probs = torch.from_numpy(np.exp(teacher.logprobs))
            target.scatter_(1, torch.from_numpy(teacher.indices), probs)
            share = (1 - LABEL_WEIGHT) / len(self.teachers)
            loss = loss + share * cross_entropy(logits, target)
        return self._step(loss)

    def fused(self, k: int | None = None) -> Tensor:
        """The library's: teachers merged, then one loss; merging is counted in every step."""
        weights = np.full((self.size.rows, len(self.teachers)), 1 / len(self.teachers), np.float32)
        fused_targets = mix(self.teachers, weights, k or self.size.k)
        targets = DistillationTargets.from_sparse(fused_targets, "cpu")
        head = Head(self.weight)
        return self._step(
            fused_distillation_loss(self.hidden, head, self.label, targets, Objective(LABEL_WEIGHT))
        )

    def events(self) -> Tensor:
        """The same of teachers over events, which have one tokenizer."""
        return self._events(self.event_teachers)

    def apart(self) -> Tensor:
        """The same where each has a tokenizer of its own, so that nothing can be merged."""
        return self._events([replace(t, orders=t.orders.copy()) for t in self.event_teachers])

    def _events(self, teachers: list[EventDistribution]) -> Tensor:
        nobody = SparseDistribution.empty(self.size.rows, 1, tail_logprob=0.0)
        weights = np.full((self.size.rows, 1 + len(teachers)), 0, np.float32)
        weights[:, 1:] = 1 / len(teachers)
        fused_targets = fuse_rows([nobody, *teachers], weights, self.size.k)
        assert isinstance(fused_targets, TeacherTargets)
        targets = EventClasses.from_targets(fused_targets, "cpu")
        head = Head(self.weight)
        return self._step(
            fused_distillation_loss(self.hidden, head, self.label, targets, Objective(LABEL_WEIGHT))
        )

    def _step(self, loss: Tensor) -> Tensor:
        self.hidden.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()


def peak_memory(
    kind: str, size: StepSize, teachers: int, seed: int, table: EventTable | None = None
) -> int:
    """Bytes that a step needs at its peak beyond its input, in a process of its own.

    That is the largest resident size during the step less the size before it, where a small step
    came first, so that what is only loaded and set up once is not counted. (Linux only.)
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (kind, size, teachers, seed, table))


def _peak_memory(
    kind: str, size: StepSize, teachers: int, seed: int, table: EventTable | None
) -> int:
    # A small step comes first; over events it has the table's vocabulary.
    few = StepSize(rows=8, vocab=size.vocab if table else 100, width=8, k=4)
    getattr(LossBench(few, teachers, seed, table), kind)()
    return peak_beyond(getattr(LossBench(size, teachers, seed, table), kind))


def _normal(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def _teacher(rng: np.random.Generator, size: StepSize) -> SparseDistribution:
    """Made-up knowledge: any k tokens with falling probabilities, and a tail of a tenth."""
    first = rng.integers(size.vocab, size=(size.rows, 1))
    # As far apart as the vocabulary allows, so k different ones.
    indices = (first + np.arange(size.k) * (size.vocab // size.k)) % size.vocab
    mass = np.sort(rng.dirichlet(np.ones(size.k), size=size.rows))[:, ::-1] * 0.9
    return SparseDistribution(
        indices=indices,
        logprobs=np.log(np.maximum(mass, 1e-9)).astype(np.float32),
        tail_logprob=np.full(size.rows, math.log(0.1), dtype=np.float32),
        weight=np.ones(size.rows, dtype=np.float32),
    )


def _event_teacher(
    rng: np.random.Generator, size: StepSize, table: EventTable, orders: ndarray
) -> EventDistribution:
    """The same over events: any k of the teacher's tokens, the frequent ones more often."""
    vocab = len(table.student_pieces)
    # Byte pairs that were merged early are frequent.
    frequency = 1 / np.arange(10, vocab + 10)
    drawn = rng.random((size.rows, size.k))
    ids = np.searchsorted(frequency.cumsum() / frequency.sum(), drawn).clip(max=vocab - 1)
    mass = rng.dirichlet(np.ones(size.k), size=size.rows) * 0.9
    start, stop = table.event(0, np.zeros_like(ids), ids)
    start, stop, mass = merge_events(start, stop, mass)
    best = np.argsort(-mass, axis=1, kind="stable")
    start, stop, mass = (np.take_along_axis(x, best, axis=1) for x in (start, stop, mass))
    return replace(
        EventDistribution.empty(orders, size.rows, size.k),
        start=start.astype(np.int32),
        stop=stop.astype(np.int32),
        logprobs=safe_log(mass).astype(np.float32),
        tail_logprob=np.log(1 - mass.sum(axis=1)).astype(np.float32),
        weight=np.ones(size.rows, dtype=np.float32),
    )

"""Losses over a large vocabulary: plain, dense as public code has them, and the fused one.

Each is a step: loss and gradient by the hidden states, under a frozen head.
"""

from __future__ import annotations

import math
import multiprocessing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from benchmarks.memory import peak_beyond
from fedfuse.config.training import Objective
from fedfuse.distillation.fused import fused_distillation_loss
from fedfuse.distillation.loss import DistillationTargets
from fedfuse.fusion.mixing import mix
from fedfuse.models.head import Head
from fedfuse.sparse import SparseDistribution

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
    """Hidden states, a head, labels, and teachers that agree on nothing, which is most to merge."""

    def __init__(self, size: StepSize, teachers: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.size = size
        self.hidden = _normal(rng, size.rows, size.width).requires_grad_()
        self.weight = _normal(rng, size.vocab, size.width) / math.sqrt(size.width)
        self.label = torch.from_numpy(rng.integers(size.vocab, size=size.rows))
        self.teachers = [_teacher(rng, size) for _ in range(teachers)]

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

    def _step(self, loss: Tensor) -> Tensor:
        self.hidden.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()


def peak_memory(kind: str, size: StepSize, teachers: int, seed: int) -> int:
    """Bytes that a step needs at its peak beyond its input, in a process of its own.

    That is the largest resident size during the step less the size before it, where a small step
    came first, so that what is only loaded and set up once is not counted. (Linux only.)
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (kind, size, teachers, seed))


def _peak_memory(kind: str, size: StepSize, teachers: int, seed: int) -> int:
    small = LossBench(StepSize(rows=8, vocab=100, width=8, k=4), teachers, seed)
    getattr(small, kind)()
    return peak_beyond(getattr(LossBench(size, teachers, seed), kind))


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

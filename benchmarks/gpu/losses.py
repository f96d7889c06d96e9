"""A step of the fused loss with teachers over events, beside fused cross-entropies of others.

A step is loss and gradient by the hidden states, under a frozen head in bfloat16. Every teacher has
a tokenizer of its own, so that nothing of them can be merged. Targets are made beforehand: a
federation makes them once a round.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from benchmarks.gpu.clock import Cost, costs
from fedfuse.config.training import Objective
from fedfuse.distillation.event_targets import EventClasses
from fedfuse.distillation.fused import fused_distillation_loss
from fedfuse.events import EventDistribution
from fedfuse.fusion.event_mixing import fuse_rows
from fedfuse.models.head import Head
from fedfuse.sparse import SparseDistribution

OBJECTIVE = Objective(0.3)
TEACHERS = (1, 4, 8)
K = 16


@dataclass(frozen=True, slots=True)
class Shape:
    """Label rows, vocabulary, and width of the hidden states."""

    rows: int
    vocab: int
    width: int


SHAPES = {"128k": Shape(16_384, 128_256, 4_096), "256k": Shape(16_384, 262_144, 640)}
QUICK = {"128k": Shape(24, 300, 16), "256k": Shape(24, 500, 8)}


class Steps:
    """Inputs of a shape on a device, and the steps that are measured."""

    def __init__(self, shape: Shape, device: torch.device, seed: int) -> None:
        self._shape, self._device = shape, device
        self._rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        make: Any = {"device": device, "dtype": dtype}
        self.hidden = torch.randn(shape.rows, shape.width, **make).requires_grad_()
        self.weight = torch.randn(shape.vocab, shape.width, **make) / math.sqrt(shape.width)
        self.label = torch.randint(shape.vocab, (shape.rows,), device=device)
        self.head = Head(self.weight)

    def teachers(self, count: int) -> EventClasses:
        """Targets of so many teachers on every row."""
        rows = self._shape.rows
        known = [self._teacher() for _ in range(count)]
        nobody = SparseDistribution.empty(rows, 1, tail_logprob=0.0)
        weights = np.full((rows, 1 + count), 1 / count, np.float32)
        weights[:, 0] = 0
        fused: Any = fuse_rows([nobody, *known], weights, K)
        return EventClasses.from_targets(fused, self._device)

    def _teacher(self) -> EventDistribution:
        """Events of a tokenizer: ranges of an order of the student's tokens, most of one token."""
        shape, rng = self._shape, self._rng
        orders = rng.permutation(shape.vocab).astype(np.int32)[None]
        gap = shape.vocab // K
        start = np.arange(K) * gap + rng.integers(gap - 8, size=(shape.rows, K))
        size = rng.choice([1, 1, 1, 2, 4], size=start.shape)
        mass = np.sort(rng.dirichlet(np.ones(K), size=shape.rows))[:, ::-1] * 0.9
        return replace(
            EventDistribution.empty(orders, shape.rows, K),
            start=start.astype(np.int32),
            stop=(start + size).astype(np.int32),
            logprobs=np.log(np.maximum(mass, 1e-9)).astype(np.float32),
            tail_logprob=np.full(shape.rows, math.log(0.1), np.float32),
            weight=np.ones(shape.rows, np.float32),
        )

    def fused(self, targets: EventClasses | None) -> Tensor:
        """The library's."""
        return self._step(
            fused_distillation_loss(self.hidden, self.head, self.label, targets, OBJECTIVE)
        )

    def plain(self) -> Tensor:
        """Cross-entropy over logits."""
        logits = linear(self.hidden, self.weight).float()
        return self._step(cross_entropy(logits, self.label))

    def others(self) -> dict[str, Callable[[], Tensor]]:
        """Fused cross-entropies of other libraries that are installed here."""
        found: dict[str, Callable[[], Tensor]] = {}
        cut = _installed("cut_cross_entropy")
        if cut:
            loss = cut.linear_cross_entropy
            found["cut-cross-entropy"] = lambda: self._step(
                loss(self.hidden, self.weight, self.label)
            )
        liger = _installed("liger_kernel.transformers.functional")
        if liger:
            linear_loss = liger.liger_fused_linear_cross_entropy
            found["liger"] = lambda: self._step(linear_loss(self.hidden, self.weight, self.label))
        return found

    def _step(self, loss: Tensor) -> Tensor:
        self.hidden.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()


def measure(device: torch.device, *, repeats: int, quick: bool) -> tuple[dict[str, Any], Any]:
    """Time and peak memory over the best fused cross-entropy that is here; and all of it."""
    results: dict[str, Any] = {}
    raw: dict[str, Any] = {}
    for name, shape in (QUICK if quick else SHAPES).items():
        steps = Steps(shape, device, seed=0)
        others = steps.others() if device.type == "cuda" else {}
        jobs: dict[str, Callable[[], object]] = {"plain": steps.plain, **others}
        jobs["labels"] = lambda steps=steps: steps.fused(None)
        for count in TEACHERS:
            targets = steps.teachers(count)
            jobs[f"{count} teachers"] = lambda s=steps, t=targets: s.fused(t)
        found = costs(jobs, device, repeats)
        rivals = [found[job] for job in (others or ("plain",))]
        for job in ("labels", *(f"{count} teachers" for count in TEACHERS)):
            results |= over(f"{name}_{job.replace(' ', '_')}", found[job], rivals)
        results[f"{name}_best_of"] = ", ".join(others or ("plain",))
        raw[name] = {
            job: {"seconds": cost.seconds, "peak_bytes": cost.peak} for job, cost in found.items()
        }
    return results, raw


def over(name: str, cost: Cost, rivals: list[Cost]) -> dict[str, Any]:
    """Time over the fastest rival's, memory over the most frugal one's."""
    found = {f"{name}_time": cost.median / min(rival.median for rival in rivals)}
    peaks = [rival.peak for rival in rivals if rival.peak]
    if cost.peak and peaks:
        found[f"{name}_memory"] = cost.peak / min(peaks)
    return found


def _installed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        return None

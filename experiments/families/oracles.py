"""Independent dense computations that the checks compare with, and how closely.

Oracles run each sample alone, unpadded, with an attention mask, through the model's own forward
pass, and compute from its logits in float64, by the formula.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from fedfuse.config.training import Objective
from fedfuse.models.causal_lm import CausalLM
from fedfuse.models.head import base_of, without_cache
from fedfuse.sparse import SparseDistribution
from fedfuse.tokenizers.dataset import TokenizedDataset

OBJECTIVE = Objective(label_weight=0.3)
K = 5
# The same sums in another order, float32: the largest seen in any family are half of these or less.
LOGITS = 1e-4  # of the logits' standard deviation
LOSS = 1e-5  # of the loss
GRADIENT = 1e-3  # of the gradient's norm
NATS = 1e-4


class Wrong(Exception):
    """A check found a wrong result."""


def draw_teacher(rows: int, vocab_size: int, seed: int = 0) -> SparseDistribution:
    """A random teacher: k distinct tokens of each row, a tail, and weights of which some are 0."""
    rng = np.random.default_rng(seed)
    mass = rng.dirichlet(np.ones(K + 1), size=rows)
    order = np.argsort(-mass[:, :K], axis=1)
    return SparseDistribution(
        indices=np.stack([rng.choice(vocab_size, K, replace=False) for _ in range(rows)]),
        logprobs=np.log(np.take_along_axis(mass[:, :K], order, 1)).astype(np.float32),
        tail_logprob=np.log(mass[:, K]).astype(np.float32),
        weight=rng.choice([0.0, 0.5, 1.0], rows).astype(np.float32),
    )


def draw_adapter(lm: CausalLM, seed: int = 0) -> None:
    """Make the adapter change what the model says; B is zero until it is trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in lm.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=generator)


def forward(lm: CausalLM, input_ids: Tensor, **inputs: Tensor) -> Tensor:
    """``[B, L, rows of the head]`` the model's own logits."""
    options = without_cache(base_of(lm.model))
    logits: Tensor = lm.model(input_ids=input_ids, **inputs, **options).logits
    return logits


def own_logits(lm: CausalLM, data: TokenizedDataset) -> Tensor:
    """``[R, V]`` the model's own logits on all label rows, each sample alone and with a mask."""
    found = []
    for number in range(len(data)):
        batch = data.batch(np.array([number]))
        mask = torch.ones_like(batch.input_ids)
        logits = forward(lm, batch.input_ids, attention_mask=mask)
        found.append(logits[0, batch.row, : lm.vocab_size])
    return torch.cat(found)


def dense_loss(logits: Tensor, label: Tensor, teacher: SparseDistribution) -> Tensor:
    """The joint loss by its formula: ``w CE(label) + (1 - w) weight CE(teacher)``, in float64.

    The teacher's classes are its tokens and all others together.
    """
    probs = torch.log_softmax(logits.double(), 1).exp()
    kept = probs.gather(1, torch.from_numpy(teacher.indices))
    other = probs.scatter(1, torch.from_numpy(teacher.indices), 0.0).sum(1)
    theirs = torch.from_numpy(np.exp(teacher.logprobs.astype(np.float64)))
    rest = torch.from_numpy(np.exp(teacher.tail_logprob.astype(np.float64)))
    total = theirs.sum(1) + rest
    distilled = -((theirs * kept.log()).sum(1) + rest * other.log()) / total
    labels = -probs.gather(1, label[:, None])[:, 0].log()
    weight = torch.from_numpy(teacher.weight.astype(np.float64))
    w = OBJECTIVE.label_weight
    return (w * labels + (1 - w) * weight * distilled).mean()


def own_weights(lm: CausalLM) -> dict[str, LoraLayer]:
    """Adapted layers by path, whose base weights become their own and ask for a gradient."""
    layers = {p: module for p, module in lm.model.named_modules() if isinstance(module, LoraLayer)}
    for layer in layers.values():
        base: Any = layer.get_base_layer()
        base.weight = torch.nn.Parameter(base.weight.detach().clone())
    return layers


def by_weights(layers: dict[str, LoraLayer]) -> int:
    """Adapters learn what their weights would: with ``W' = W + s B A``, ``dB = s dW A^T``.

    So a layer whose weight is read past the adapter, or only in part through it, is found. Returns
    the number of layers that no part of the model used.
    """
    unused = 0
    for path, layer in layers.items():
        base: Any = layer.get_base_layer()
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        scale = layer.scaling["default"]
        if base.weight.grad is None or not base.weight.grad.any():
            unused += 1
            continue
        whole = base.weight.grad.T if isinstance(base, Conv1D) else base.weight.grad
        pairs = ((up, scale * whole @ down.T), (down, scale * up.T @ whole))
        for parameter, right in pairs:
            found = torch.zeros_like(right) if parameter.grad is None else parameter.grad
            if not (found - right).norm() <= GRADIENT * right.norm() + 1e-12:
                raise Wrong(f"the adapter of {path} does not get its weight's gradient")
    return unused


def gradients(model: Any) -> dict[str, Tensor]:
    """Gradient of the adapter's weights by name, float32; zeros where there is none."""
    return {
        name: (torch.zeros_like(p) if p.grad is None else p.grad).detach().clone().float()
        for name, p in model.named_parameters()
        if "lora_" in name
    }


def flat(gradient: dict[str, Tensor]) -> Tensor:
    """A gradient as one vector."""
    return torch.cat([value.flatten() for _, value in sorted(gradient.items())])


def same_gradient(what: str, found: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Norm of the difference of two gradients by that of ``right``; at most ``GRADIENT``."""
    whole = float(flat(right).norm())
    off = float((flat(found) - flat(right)).norm()) / whole if whole else math.inf
    if not off <= GRADIENT:
        raise Wrong(f"{what}: off by {off:.1e} of its norm")
    return off


def close(what: str, found: Tensor, right: Tensor, allowed: float) -> float:
    """Largest difference in standard deviations of ``right``; it must be no more than allowed."""
    off = float((found - right).abs().max() / right.std())
    if not off <= allowed:
        raise Wrong(f"{what}: off by {off:.1e} deviations")
    return off


def allocated(profiled: Any) -> tuple[int, int]:
    """Most bytes that the allocator had given out, and those still given out at the end."""
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak, now

"""Elastic weight consolidation: penalise changes of weights where the model trusts itself.

Kirkpatrick et al., arXiv 1612.00796: a parameter is pulled back to its value at the start of the
phase, its anchor, in proportion to its Fisher information on the samples to be kept.

Differs from the paper: the samples to be kept are those on which the fused weights trust the
student itself; the pull is decoupled from the gradient, as AdamW's weight decay is (Loshchilov and
Hutter, arXiv 1711.05101), so that it does not pass through the optimizer's moments; and the
information is divided by its mean over all parameters, so that a strength means the same for every
model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from jaxtyping import Int64
from numpy import ndarray
from torch import Tensor, nn

from fedfuse.config.training import Objective, TrainingConfig
from fedfuse.data.sampling import parts_by_length
from fedfuse.distillation.loss import DistillationTargets
from fedfuse.distillation.targets import Teacher, batch_losses
from fedfuse.events import TeacherTargets
from fedfuse.models.causal_lm import CausalLM
from fedfuse.models.precision import pass_cost
from fedfuse.tokenizers.dataset import TokenizedDataset

Named = Mapping[str, nn.Parameter]


@dataclass(frozen=True, slots=True)
class EWCPenalty:
    """Anchors of parameters, and the decay towards them.

    Attributes:
        anchor: values at the start of the phase, by name.
        decay: of the same shapes, 0 or more: share of the way back to the anchor that a step of
            learning rate 1 takes.
    """

    anchor: dict[str, Tensor]
    decay: dict[str, Tensor]

    @classmethod
    def from_fisher(cls, named: Named, information: Mapping[str, Tensor], strength: float) -> Self:
        """Anchor parameters at their current values.

        Args:
            named: the trainable parameters.
            information: Fisher information of each, by name.
            strength: decay of a parameter of mean information; 0 or more.
        """
        size = sum(value.numel() for value in information.values())
        mean = sum(float(value.sum(dtype=torch.float64)) for value in information.values()) / size
        scale = strength / mean if mean > 0 else 0.0
        return cls(
            {name: parameter.detach().clone() for name, parameter in named.items()},
            {name: scale * value for name, value in information.items()},
        )

    @torch.no_grad()
    def apply(self, named: Named, learning_rate: float) -> None:
        """Pull parameters back after a step, to their anchors at most."""
        for name, parameter in named.items():
            parameter.lerp_(self.anchor[name], (learning_rate * self.decay[name]).clamp(max=1.0))

    def state(self) -> dict[str, ndarray]:
        """Flat arrays ``anchor/NAME`` and ``decay/NAME``."""
        return {
            f"{kind}/{name}": value.to("cpu", torch.float32, copy=True).numpy()
            for kind, values in (("anchor", self.anchor), ("decay", self.decay))
            for name, value in values.items()
        }

    @classmethod
    def from_state(cls, state: Mapping[str, ndarray], named: Named) -> Self | None:
        """Penalty of a ``state``; None where it holds none."""
        if not any(key.startswith("decay/") for key in state):
            return None
        anchor, decay = (
            {n: torch.tensor(state[f"{kind}/{n}"], device=p.device) for n, p in named.items()}
            for kind in ("anchor", "decay")
        )
        return cls(anchor, decay)


def estimate_ewc(
    lm: CausalLM,
    named: Named,
    data: TokenizedDataset,
    teacher: Teacher,
    config: TrainingConfig,
    *,
    seed: int,
    max_tokens: int,
) -> EWCPenalty | None:
    """Estimate the penalty on the samples where the student is trusted itself.

    The decay's mean over all parameters is the config's strength times the mean trust.

    Args:
        lm: the student, in evaluation mode.
        named: its trainable parameters.
        data: the N samples.
        teacher: targets of the phase, with the student's trust in itself.
        config: the phase.
        seed: seed of all draws.
        max_tokens: tokens at once, padding included.

    Returns:
        The penalty; None for targets without the student's trust.
    """
    if isinstance(teacher, TeacherTargets):
        teacher = teacher.tokens
    if teacher.self_weight is None:
        return None
    generator = torch.Generator().manual_seed(seed % 2**63)
    kept = torch.rand(len(teacher.self_weight), generator=generator).numpy() < teacher.self_weight
    samples = np.flatnonzero(kept)
    device = next(iter(named.values())).device
    cost = pass_cost(lm.model, device)

    def losses() -> Iterator[Tensor]:
        for start in range(0, len(samples), config.batch_size):
            some = samples[start : start + config.batch_size]
            for part in parts_by_length(data.lengths[some], max_tokens, cost):
                batch = data.batch(some[part], device)
                targets = DistillationTargets.from_sparse(teacher[batch.index], device)
                batch = replace(batch, label=draw_labels(targets, batch.label, generator))
                mean, _ = batch_losses(lm, batch, None, Objective())
                yield mean * len(batch.row)

    strength = config.ewc * float(teacher.self_weight.mean())
    return EWCPenalty.from_fisher(named, fisher_information(named, losses()), strength)


def fisher_information(named: Named, losses: Iterable[Tensor]) -> dict[str, Tensor]:
    """Diagonal Fisher information: the sum of squared gradients.

    With labels drawn from the model itself, the gradient of a sum of losses is zero in the mean,
    so that its square needs no gradient per sample.

    Args:
        named: the parameters.
        losses: each the summed negative log-likelihood of some samples under such labels; one is
            asked for after the last one's gradient was taken.
    """
    information = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    for loss in losses:
        gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        for name, gradient in zip(named, gradients, strict=True):
            if gradient is not None:
                information[name] += gradient.float() ** 2
    return information


def draw_labels(
    targets: DistillationTargets, label: Int64[Tensor, " rows"], generator: torch.Generator
) -> Int64[Tensor, " rows"]:
    """``[R]`` a token from each teacher's distribution.

    Args:
        targets: of R rows.
        label: ``[R]`` taken where nobody teaches, and for a token of the tail, of which is known
            only that it is another one.
        generator: draws; of the CPU.
    """
    mass = torch.cat([targets.probs, targets.tail[:, None]], dim=1).cpu()
    mass[(targets.weight <= 0).cpu()] = 1.0
    place = torch.multinomial(mass, 1, generator=generator).to(label.device)
    drawn = torch.cat([targets.indices, label[:, None]], dim=1).gather(1, place)[:, 0]
    return torch.where(targets.weight > 0, drawn, label)

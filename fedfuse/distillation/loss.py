"""The joint loss of labels and a sparse teacher.

FedMKT (arXiv 2406.02224), Eq. 5-10: ``L = lambda * CE(labels) + (1 - lambda) * CE(teacher)``.

A teacher names k tokens of a row and the mass outside them, the "tail". Student and teacher are
compared as distributions over these k + 1 classes: the student's tail is its own mass outside the
same k tokens. So a row's loss needs no more of the student's logits than k values, the label's, and
one log-sum-exp over the others (``Targets.losses``), and the same lines serve logits that exist
(``distillation_loss``) and logits that never do (``fedfuse.distillation.fused``).

Differs from the paper: the tail is a class instead of being taken as zero. The paper's rule is the
same loss on a teacher without a tail. The paper knows cross-entropy only, without a temperature.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from fedfuse.config.training import Objective
from fedfuse.sparse import SparseDistribution
from fedfuse.tokenizers.dataset import to_tensor

# Teacher probability below which reverse KL does not go. A truncated or rounded teacher does not
# know that a token is impossible, and the divergence from a true zero is infinite.
LEAST_PROBABILITY = 1e-6


class Targets(Protocol):
    """What teaches R label rows, as a few classes of the student's vocabulary on each row."""

    def read(self) -> tuple[Int64[Tensor, " read"], Int64[Tensor, " read"]]:
        """``[M]`` row and ``[M]`` token of the logits that the loss reads one by one."""

    def losses(
        self,
        kept: Float[Tensor, " read"],
        outside: Float[Tensor, " rows"],
        label_score: Float[Tensor, " rows"],
        objective: Objective,
    ) -> Float[Tensor, " rows"]:
        """The joint loss of each row, from what it needs of the student's logits.

        Args:
            kept: ``[M]`` logits of ``read``, float32 or wider.
            outside: ``[R]`` log-sum-exp of all other logits, summed over them, because one minus
                the kept mass would round a small rest to 0; -inf where there are none.
            label_score: ``[R]`` the label's logit.
            objective: weight of the labels, divergence and temperature.

        Returns:
            ``[R]`` nats.
        """

    def __getitem__(self, rows: slice) -> Targets:
        """Some of the rows."""

    def parts(self, size: int) -> Iterator[slice]:
        """Stretches of about ``size`` rows whose losses can be had apart, in order."""


@dataclass(frozen=True, slots=True)
class DistillationTargets:
    """A teacher's distributions on R label rows, in the student's tokens.

    Attributes:
        indices: ``[R, k]`` token ids; an unused slot repeats an earlier one of its row.
        probs: ``[R, k]`` probabilities, 0 in unused slots.
        tail: ``[R]`` probability outside the kept entries; ``probs`` and ``tail`` sum to 1.
        weight: ``[R]`` in [0, 1], 0 where nobody teaches: such a row carries no distillation term.
    """

    indices: Int64[Tensor, "rows k"]
    probs: Float32[Tensor, "rows k"]
    tail: Float32[Tensor, " rows"]
    weight: Float32[Tensor, " rows"]

    @classmethod
    def from_sparse(
        cls, teacher: SparseDistribution, device: torch.device | str
    ) -> DistillationTargets:
        """The rows of a distribution as tensors, as probabilities that sum to one."""
        mass = np.exp(np.column_stack([teacher.logprobs, teacher.tail_logprob]))
        mass /= np.maximum(mass.sum(1, keepdims=True), 1e-30)
        arrays = teacher.indices, mass[:, :-1], mass[:, -1], teacher.weight
        return cls(*(to_tensor(array, device) for array in arrays))

    def __getitem__(self, rows: slice) -> DistillationTargets:
        """Some of the rows."""
        return DistillationTargets(
            self.indices[rows], self.probs[rows], self.tail[rows], self.weight[rows]
        )

    def parts(self, size: int) -> Iterator[slice]:
        """Stretches of ``size`` rows."""
        return even_parts(len(self.tail), size)

    def read(self) -> tuple[Int64[Tensor, " read"], Int64[Tensor, " read"]]:
        """Rows and kept tokens, k for each row."""
        rows, k = self.indices.shape
        row = torch.arange(rows, device=self.indices.device).repeat_interleave(k)
        return row, self.indices.reshape(-1)

    def losses(
        self,
        kept: Float[Tensor, " read"],
        outside: Float[Tensor, " rows"],
        label_score: Float[Tensor, " rows"],
        objective: Objective,
    ) -> Float[Tensor, " rows"]:
        """The joint loss of each row; see ``Targets``."""
        kept = kept.view(self.indices.shape).masked_fill(repeated(self.indices), -torch.inf)
        scores = torch.cat([kept, outside[:, None]], 1)  # [rows, k + 1]
        label_loss = scores.logsumexp(1) - label_score
        # A tail that the student cannot have, as no token is left for it, is no class.
        tail = torch.where(outside.isneginf(), 0.0, self.tail)
        probs = torch.cat([self.probs, tail[:, None]], 1).to(scores.dtype)
        teacher_loss = divergence(scores, probs, objective)
        label_weight = objective.label_weight
        return label_weight * label_loss + (1 - label_weight) * self.weight * teacher_loss


def even_parts(num_rows: int, size: int) -> Iterator[slice]:
    """Stretches of ``size`` rows, the last one of what is left."""
    return (slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size))


def distillation_loss(
    logits: Float[Tensor, "rows vocab"],
    label: Int64[Tensor, " rows"],
    teacher: Targets | None,
    objective: Objective,
) -> Float[Tensor, ""]:
    """Mean over label rows of the joint loss.

    Args:
        logits: the student's, one row per label row.
        label: the token each row should predict.
        teacher: targets of the rows; None for labels alone, at full weight.
        objective: weight of the labels, divergence and temperature.

    Returns:
        A scalar, nats per label row, float32 or wider; 0 without rows.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    label_score = logits.gather(1, label[:, None])[:, 0]
    if teacher is None:
        losses = logits.logsumexp(1) - label_score
    else:
        row, token = teacher.read()
        places, flat = row * logits.shape[1] + token, logits.reshape(-1)
        outside = flat.scatter(0, places, -torch.inf).view(logits.shape).logsumexp(1)  # [rows]
        losses = teacher.losses(flat[places], outside, label_score, objective)
    return losses.sum() / max(1, len(losses))


def divergence(
    scores: Float[Tensor, "rows classes"],
    probs: Float[Tensor, "rows classes"],
    objective: Objective,
) -> Float[Tensor, " rows"]:
    """Divergence of a student from a teacher over the same few classes.

    Args:
        scores: the student's logits; -inf for what is no class.
        probs: the teacher's; a row is normalised here, and one without any mass costs nothing in
            cross-entropy and forward KL.
        objective: which divergence, at which temperature.

    Returns:
        ``[R]`` nats, times the temperature's square.
    """
    temperature = objective.temperature
    student = torch.log_softmax(scores / temperature, 1)
    share = student.exp()
    student = student.masked_fill(student.isneginf(), 0.0)  # 0 * log 0 is 0
    teacher = probs.pow(1 / temperature)
    teacher = teacher / teacher.sum(1, keepdim=True).clamp_min(1e-30)
    if objective.divergence == "reverse-kl":
        loss = (share * (student - teacher.clamp_min(LEAST_PROBABILITY).log())).sum(1)
    else:
        loss = -(teacher * student).sum(1)
    if objective.divergence == "forward-kl":
        loss = loss + torch.special.xlogy(teacher, teacher).sum(1)
    return temperature**2 * loss


def repeated(indices: Int64[Tensor, "rows k"]) -> Bool[Tensor, "rows k"]:
    """Whether a slot's token is also in an earlier slot of its row."""
    ordered, order = indices.sort(dim=1, stable=True)
    again = torch.zeros_like(ordered, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.zeros_like(again).scatter(1, order, again)

"""The joint loss of labels and a sparse teacher.

FedMKT (arXiv 2406.02224), Eq. 5-10: ``L = lambda * CE(labels) + (1 - lambda) * CE(teacher)``.

Differs from the paper: the teacher's mass outside its k kept entries is a class of its own (the
"tail"), compared with the student's mass outside the same entries, instead of being taken as zero.
The paper's rule is the same loss on a teacher without a tail.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SparseTargets:
    """A teacher's distributions on R label rows, in the student's vocabulary.

    Attributes:
        indices: ``[R, k]`` token ids; an unused slot repeats another of its row.
        probs: ``[R, k]`` probabilities, 0 in unused slots.
        tail: ``[R]`` probability outside the kept entries; ``probs`` and ``tail`` sum to 1.
        weight: ``[R]`` in [0, 1], 0 where nobody teaches: such a row carries no distillation term.
    """

    indices: Int64[Tensor, "rows k"]
    probs: Float32[Tensor, "rows k"]
    tail: Float32[Tensor, " rows"]
    weight: Float32[Tensor, " rows"]


def distillation_loss(
    logits: Float[Tensor, "rows vocab"],
    label: Int64[Tensor, " rows"],
    teacher: SparseTargets | None,
    label_share: float,
) -> Float32[Tensor, ""]:
    """Mean over label rows of the joint loss.

    Args:
        logits: the student's, one row per label row.
        label: the token each row should predict.
        teacher: what the rows should learn; None for labels alone, at full weight.
        label_share: lambda, in [0, 1].

    Returns:
        A scalar, nats per label row.
    """
    logprobs = torch.log_softmax(logits.float(), dim=-1)  # [rows, vocab]
    label_loss = -logprobs.gather(1, label[:, None])[:, 0]  # [rows]
    if teacher is None:
        return label_loss.mean()
    kept = logprobs.gather(1, teacher.indices)  # [rows, k]
    # The student's log mass outside the kept entries; summed over them, not 1 - mass, which rounds
    # to 0.
    outside = logprobs.scatter(1, teacher.indices, -torch.inf).logsumexp(1)  # [rows]
    tail_loss = torch.where(teacher.tail > 0, -teacher.tail * outside, 0.0)
    teacher_loss = tail_loss - (teacher.probs * kept).sum(1)  # [rows]
    joint = label_share * label_loss + (1 - label_share) * teacher.weight * teacher_loss
    return joint.mean()

"""Slow, obvious version of the joint loss: every teacher row dense, in double precision."""

from __future__ import annotations

import torch
from torch import Tensor


def joint_loss(
    logits: Tensor,
    label: list[int],
    kept: list[dict[int, float]],
    weight: list[float],
    label_share: float,
) -> Tensor:
    """Mean over rows of ``lambda * CE(label) + (1 - lambda) * weight * CE(teacher)``.

    ``kept`` has each row's probabilities by token; what they leave of one is in a bucket of its own
    with all other tokens in it.
    """
    student = torch.softmax(logits.double(), dim=1)
    total = student.new_zeros(())
    for row in range(len(student)):
        teacher = student.new_zeros(student.shape[1] + 1)
        for token, probability in kept[row].items():
            teacher[token] = probability
        teacher[-1] = 1 - sum(kept[row].values())
        others = [token for token in range(student.shape[1]) if token not in kept[row]]
        bucket = student[row, others].sum().reshape(1)
        both = torch.cat([student[row], bucket])
        certain = teacher > 1e-12
        teacher_loss = -(teacher[certain] * both[certain].log()).sum()
        label_loss = -student[row, label[row]].log()
        total = total + label_share * label_loss + (1 - label_share) * weight[row] * teacher_loss
    return total / len(student)

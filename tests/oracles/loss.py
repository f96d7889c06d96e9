"""Slow, obvious version of the joint loss: class by class, in double precision."""

from __future__ import annotations

import torch
from torch import Tensor

from fedfuse.distillation.loss import LEAST_PROBABILITY


def joint_loss(
    logits: Tensor,
    label: list[int],
    kept: list[dict[int, float]],
    weight: list[float],
    label_weight: float,
    divergence: str = "cross-entropy",
    temperature: float = 1.0,
) -> Tensor:
    """Mean over rows of ``lambda * CE(label) + (1 - lambda) * weight * D(teacher, student)``.

    ``kept`` has each row's probabilities by token; what they leave of one is in a bucket of its own
    with all other tokens in it, if there are any.
    """
    student = torch.softmax(logits.double(), dim=1)
    total = student.new_zeros(())
    for row in range(len(student)):
        own = [student[row, token] for token in kept[row]]
        theirs = list(kept[row].values())
        others = [token for token in range(student.shape[1]) if token not in kept[row]]
        if others:
            own.append(student[row, others].sum())
            rest = 1 - sum(theirs)
            theirs.append(rest if rest > 1e-12 else 0.0)  # of rounding, a root makes a lot
        s = normalised([p ** (1 / temperature) for p in own])
        t = normalised([torch.tensor(p).double() ** (1 / temperature) for p in theirs])
        teacher_loss = student.new_zeros(())
        for p, q in zip(s, t, strict=True):
            if divergence == "reverse-kl":
                teacher_loss = teacher_loss + p * (p / q.clamp(min=LEAST_PROBABILITY)).log()
            elif q > 0:
                ratio = q / p if divergence == "forward-kl" else 1 / p
                teacher_loss = teacher_loss + q * ratio.log()
        label_loss = -student[row, label[row]].log()
        distilled = weight[row] * temperature**2 * teacher_loss
        total = total + label_weight * label_loss + (1 - label_weight) * distilled
    return total / len(student)


def normalised(masses: list[Tensor]) -> list[Tensor]:
    """The same list, summing to one."""
    total = torch.stack(masses).sum()
    return [mass / total for mass in masses]

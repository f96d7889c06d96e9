"""Losses of a batch: joint on taught rows, labels alone on replayed ones."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fedfuse.config.training import Objective
from fedfuse.distillation.event_targets import EventClasses
from fedfuse.distillation.fused import fused_distillation_loss
from fedfuse.distillation.loss import DistillationTargets, Targets, distillation_loss
from fedfuse.events import TeacherTargets
from fedfuse.models.causal_lm import CausalLM
from fedfuse.models.forward import label_row_logits, label_row_states
from fedfuse.sparse import SparseDistribution
from fedfuse.tokenizers.dataset import Batch

# Targets of a data set's label rows: one mixture over the student's tokens, or more.
Teacher = SparseDistribution | TeacherTargets


def batch_losses(
    lm: CausalLM,
    batch: Batch,
    teacher: Teacher | None,
    objective: Objective,
    *,
    taught: int | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The losses of one forward pass, without forming its logits where the model allows.

    Args:
        lm: the student.
        batch: of R label rows.
        teacher: of the first ``taught`` rows.
        objective: their joint loss.
        taught: rows with the joint loss; all by default. The others are replayed: labels alone.

    Returns:
        The mean joint loss of the taught rows and the mean label loss of the others, float32 or
        wider; 0 where there are none.
    """
    states = label_row_states(lm, batch)
    logits = None if states else label_row_logits(lm, batch)

    def loss(rows: slice, teacher: Teacher | None) -> Tensor:
        label = batch.label[rows]
        targets: Targets | None = None
        if isinstance(teacher, TeacherTargets):
            some = teacher[batch.index[rows]]
            targets = EventClasses.from_targets(some, label.device)
        elif teacher is not None:
            mixed = teacher[batch.index[rows]]
            targets = DistillationTargets.from_sparse(mixed, label.device)
        if logits is not None:
            return distillation_loss(logits[rows], label, targets, objective)
        assert states is not None
        return fused_distillation_loss(states.hidden[rows], states.head, label, targets, objective)

    if taught is None or taught == len(batch.row):
        return loss(slice(None), teacher), torch.zeros((), device=batch.label.device)
    return loss(slice(taught), teacher), loss(slice(taught, None), None)

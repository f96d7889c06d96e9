"""What a student is taught, and the loss of a batch of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from numpy import ndarray
from torch import Tensor, nn

from fedfuse.config.training import Objective
from fedfuse.distillation.fused import fused_distillation_loss
from fedfuse.distillation.loss import SparseTargets, distillation_loss
from fedfuse.models.forward import label_row_logits, label_row_states
from fedfuse.tokenizers.dataset import Batch, to_tensor


@dataclass(frozen=True, slots=True)
class Teacher:
    """What a student should learn, on the label rows of its own encoded public set.

    Attributes:
        indices: ``[T, k]`` token ids in the student's vocabulary; an unused slot repeats an
            earlier one of its row.
        logprobs: ``[T, k]`` log-probabilities, -inf in unused slots.
        tail_logprob: ``[T]`` log of the mass outside the kept entries; -inf for a teacher without a
            tail.
        weight: ``[T]`` in [0, 1], 0 where nobody teaches.
        own: ``[N]`` in [0, 1] the student's trust in itself on each sample of the set; None where
            nobody asked.
    """

    indices: Int64[ndarray, "rows k"]
    logprobs: Float32[ndarray, "rows k"]
    tail_logprob: Float32[ndarray, " rows"]
    weight: Float32[ndarray, " rows"]
    own: Float32[ndarray, " samples"] | None = None

    def rows(self, which: Int64[ndarray, " some"], device: torch.device | str) -> SparseTargets:
        """Some rows as tensors, as probabilities that sum to one."""
        mass = np.exp(np.column_stack([self.logprobs[which], self.tail_logprob[which]]))
        mass /= np.maximum(mass.sum(1, keepdims=True), 1e-30)
        return SparseTargets(
            to_tensor(self.indices[which], device),
            to_tensor(mass[:, :-1], device),
            to_tensor(mass[:, -1], device),
            to_tensor(self.weight[which], device),
        )


def batch_losses(
    model: nn.Module,
    batch: Batch,
    vocab_size: int,
    teacher: Teacher | None,
    objective: Objective,
    *,
    taught: int | None = None,
    autocast: str = "none",
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The losses of one forward pass, without forming its logits where the model allows.

    Args:
        model: a causal LM.
        batch: of R label rows.
        vocab_size: size of the tokenizer's vocabulary.
        teacher: of the first ``taught`` rows.
        objective: their joint loss.
        taught: rows with the joint loss; all by default. The others are replayed: labels alone.
        autocast: what products of the forward pass are computed in.

    Returns:
        The mean joint loss of the taught rows and the mean label loss of the others, float32 or
        wider; 0 where there are none.
    """
    states = label_row_states(model, batch, vocab_size, autocast)
    logits = None if states else label_row_logits(model, batch, vocab_size, autocast)

    def loss(rows: slice, teacher: Teacher | None) -> Tensor:
        label = batch.label[rows]
        targets = teacher.rows(batch.index[rows], label.device) if teacher else None
        if logits is not None:
            return distillation_loss(logits[rows], label, targets, objective)
        assert states is not None
        return fused_distillation_loss(states.hidden[rows], states.head, label, targets, objective)

    if taught is None or taught == len(batch.row):
        return loss(slice(None), teacher), torch.zeros((), device=batch.label.device)
    return loss(slice(taught), teacher), loss(slice(taught, None), None)

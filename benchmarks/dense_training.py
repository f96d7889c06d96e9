"""How phases ran before the fused loss, to be compared with.

Samples are padded to the longest of a batch with an attention mask, logits exist on the whole span
of positions that has label rows, log-probabilities and their copy without the teacher's tokens on
all label rows of a batch, replayed samples take a second forward pass, and AdamW goes over the
parameters one by one. The order of samples is the library's, so that results can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy import ndarray
from torch import Tensor, nn

from fedfuse.algorithms.local_model import LocalModel
from fedfuse.config.training import TrainingConfig
from fedfuse.data.sample import Sample
from fedfuse.data.sampling import sample_indices
from fedfuse.distillation.loss import DistillationTargets
from fedfuse.distillation.training import schedule
from fedfuse.sparse import SparseDistribution
from fedfuse.tokenizers.label_rows import label_rows

SCORED_SAMPLES = 128


class PaddedSet:
    """Whole samples, padded together."""

    def __init__(self, local_model: LocalModel, samples: Sequence[Sample]) -> None:
        ids, self.rows = label_rows(local_model.tokenizer, samples, local_model.max_length)
        self.lengths = np.array([len(i) for i in ids])
        self._starts = self.lengths.cumsum() - self.lengths
        self._flat = np.concatenate(ids)

    def batch(self, which: Int64[ndarray, " batch"]) -> dict[str, Tensor]:
        """Inputs, mask and label rows of some samples."""
        lengths = self.lengths[which]
        columns = np.arange(lengths.max())
        mask = columns < lengths[:, None]
        source = np.minimum(self._starts[which][:, None] + columns, len(self._flat) - 1)
        offsets = self.rows.offsets
        index = np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in which])
        found = {
            "input_ids": np.where(mask, self._flat[source], self._flat[0]),
            "attention_mask": mask,
            "sample": np.repeat(np.arange(len(which)), np.diff(offsets)[which]),
            "row": self.rows.row[index],
            "label": self.rows.token[index],
            "index": index,
        }
        return {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in found.items()}


def train(
    local_model: LocalModel,
    data: PaddedSet,
    settings: TrainingConfig,
    seed: int,
    teacher: SparseDistribution,
    label_weight: float,
    replay: PaddedSet | None,
) -> float:
    """One distillation phase; returns the mean loss over its last tenth."""
    model, vocab_size = local_model.lm.model, local_model.tokenizer.vocab_size
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=settings.weight_decay
    )
    model.train()
    losses = []
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * schedule(step, settings)
        address = seed, step * settings.batch_size, settings.batch_size
        batch = data.batch(sample_indices(len(data.lengths), *address))
        logits = span_logits(model, batch, vocab_size)
        targets = DistillationTargets.from_sparse(teacher[batch["index"].numpy()], "cpu")
        loss = joint_loss(logits, batch["label"], targets, label_weight)
        if replay:
            batch = replay.batch(sample_indices(len(replay.lengths), *address))
            logits = span_logits(model, batch, vocab_size)
            loss = loss + joint_loss(logits, batch["label"], None, 1.0)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return float(np.mean(losses[-max(1, len(losses) // 10) :]))


def span_logits(
    model: nn.Module, batch: dict[str, Tensor], vocab_size: int
) -> Float[Tensor, "rows vocab"]:
    """Logits of the label rows, cut out of those of all positions from the first to the last."""
    first, last = int(batch["row"].min()), int(batch["row"].max())
    logits: Any = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        logits_to_keep=torch.arange(first, last + 1),
    ).logits
    rows: Tensor = logits[batch["sample"], batch["row"] - first, :vocab_size]
    return rows


def joint_loss(
    logits: Float[Tensor, "rows vocab"],
    label: Int64[Tensor, " rows"],
    teacher: DistillationTargets | None,
    label_weight: float,
) -> Float[Tensor, ""]:
    """The joint loss over log-probabilities of the whole vocabulary."""
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    label_loss = -logprobs.gather(1, label[:, None])[:, 0]
    if teacher is None:
        return label_loss.mean()
    kept = logprobs.gather(1, teacher.indices)
    outside = logprobs.scatter(1, teacher.indices, -torch.inf).logsumexp(1)
    tail_loss = torch.where(teacher.tail > 0, -teacher.tail * outside, 0.0)
    teacher_loss = tail_loss - (teacher.probs * kept).sum(1)
    return (label_weight * label_loss + (1 - label_weight) * teacher.weight * teacher_loss).mean()


@torch.no_grad()
def extract(local_model: LocalModel, data: PaddedSet, k: int) -> dict[str, ndarray]:
    """Top k, rest and label of every label row, a batch of logits at a time."""
    count = len(data.rows.token)
    found = {
        "indices": np.empty((count, k), dtype=np.int64),
        "logprobs": np.empty((count, k), dtype=np.float32),
        "tail_logprob": np.empty(count, dtype=np.float32),
        "label_logprob": np.empty(count, dtype=np.float32),
    }
    local_model.lm.model.eval()
    order = np.argsort(data.lengths, kind="stable")
    for start in range(0, len(order), SCORED_SAMPLES):
        batch = data.batch(order[start : start + SCORED_SAMPLES])
        logits = span_logits(local_model.lm.model, batch, local_model.tokenizer.vocab_size)
        everything = torch.log_softmax(logits.float(), dim=-1)
        top, chosen = everything.topk(k, dim=-1)
        index = batch["index"].numpy()
        found["indices"][index], found["logprobs"][index] = chosen.numpy(), top.numpy()
        label = everything.gather(1, batch["label"][:, None])[:, 0]
        found["label_logprob"][index] = label.numpy()
        rest = everything.scatter(1, chosen, -torch.inf).logsumexp(-1)
        found["tail_logprob"][index] = rest.numpy()
    return found

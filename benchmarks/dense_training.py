"""How phases ran before the fused loss, to be compared with.

Samples are padded to the longest of a batch with an attention mask, logits exist on the whole span
of positions that has label rows, log-probabilities and their copy without the teacher's tokens on
all label rows of a batch, replayed samples take a second forward pass, and AdamW goes over the
parameters one by one. The order of samples is the library's, so that results can be compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy import ndarray
from torch import Tensor, nn

from fedfuse.algorithms.local_model import LocalModel
from fedfuse.config.training import TrainingConfig
from fedfuse.data.sampling import sample_indices
from fedfuse.distillation.loss import DistillationTargets
from fedfuse.distillation.training import schedule
from fedfuse.sparse import SparseDistribution
from fedfuse.tokenizers.dataset import Batch, TokenizedDataset

SCORED_SAMPLES = 128


def learn(
    local_model: LocalModel,
    data: TokenizedDataset,
    settings: TrainingConfig,
    *,
    seed: int,
    teacher: SparseDistribution,
    replay: TokenizedDataset | None = None,
    **_: object,
) -> tuple[float, None]:
    """One distillation phase, as ``LocalModel.learn``; without training states."""
    model = local_model.lm.model
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
        batch, logits = span_logits(local_model, data, sample_indices(len(data), *address))
        targets = DistillationTargets.from_sparse(teacher[batch.index], "cpu")
        loss = joint_loss(logits, batch.label, targets, settings.objective.label_weight)
        if replay:
            batch, logits = span_logits(local_model, replay, sample_indices(len(replay), *address))
            loss = loss + joint_loss(logits, batch.label, None, 1.0)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return float(np.mean(losses[-max(1, len(losses) // 10) :])), None


def span_logits(
    local_model: LocalModel, data: TokenizedDataset, which: Int64[ndarray, " batch"]
) -> tuple[Batch, Float[Tensor, "rows vocab"]]:
    """Some samples, and the logits of their label rows, cut out of those of all positions from the
    first to the last.
    """
    batch = data.batch(which)
    mask = torch.arange(batch.input_ids.shape[1]) < torch.from_numpy(data.lengths[which])[:, None]
    first, last = int(batch.row.min()), int(batch.row.max())
    logits: Any = local_model.lm.model(
        input_ids=batch.input_ids,
        attention_mask=mask,
        logits_to_keep=torch.arange(first, last + 1),
    ).logits
    return batch, logits[batch.sample, batch.row - first, : local_model.tokenizer.vocab_size]


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
def extract(local_model: LocalModel, k: int) -> dict[str, ndarray]:
    """Top k, rest and label of every label row of the public set, a batch of logits at a time."""
    data, parts = local_model.public, []
    local_model.lm.model.eval()
    by_length = np.argsort(data.lengths, kind="stable")
    for start in range(0, len(data), SCORED_SAMPLES):
        batch, logits = span_logits(local_model, data, by_length[start : start + SCORED_SAMPLES])
        everything = torch.log_softmax(logits.float(), dim=-1)
        top, chosen = everything.topk(k, dim=-1)
        label = everything.gather(1, batch.label[:, None])[:, 0]
        rest = everything.scatter(1, chosen, -torch.inf).logsumexp(-1)
        parts.append((torch.from_numpy(batch.index), chosen, top, rest, label))
    index, *columns = (torch.cat(column) for column in zip(*parts, strict=True))
    names = ("indices", "logprobs", "tail_logprob", "label_logprob")
    order = index.argsort()
    return {name: column[order].numpy() for name, column in zip(names, columns, strict=True)}

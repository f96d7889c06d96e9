"""The training loop of both sides: labels alone, or labels and a teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from numpy import ndarray
from torch import Tensor, nn

from fedfuse.distillation.encoded import Batch, EncodedSet, to_tensor
from fedfuse.distillation.fused import fused_distillation_loss
from fedfuse.distillation.loss import SparseTargets, distillation_loss
from fedfuse.distillation.settings import PLAIN, Comparison, TrainingSettings
from fedfuse.models.forward import label_row_logits, label_row_states

OptimizerState = dict[str, ndarray]


@dataclass(frozen=True, slots=True)
class Teacher:
    """What a student should learn, on the label rows of its own encoded public set.

    Attributes:
        indices: ``[T, k]`` token ids in the student's vocabulary; an unused slot repeats an
            earlier one of its row.
        logprobs: ``[T, k]`` log-probabilities, -inf in unused slots.
        residual: ``[T]`` log of the mass outside the kept entries; -inf for a teacher without a
            tail.
        weight: ``[T]`` in [0, 1], 0 where nobody teaches.
    """

    indices: Int64[ndarray, "rows k"]
    logprobs: Float32[ndarray, "rows k"]
    residual: Float32[ndarray, " rows"]
    weight: Float32[ndarray, " rows"]

    def rows(self, which: Int64[ndarray, " some"], device: torch.device | str) -> SparseTargets:
        """Some rows as tensors, as probabilities that sum to one."""
        mass = np.exp(np.column_stack([self.logprobs[which], self.residual[which]]))
        mass /= np.maximum(mass.sum(1, keepdims=True), 1e-30)
        return SparseTargets(
            to_tensor(self.indices[which], device),
            to_tensor(mass[:, :-1], device),
            to_tensor(mass[:, -1], device),
            to_tensor(self.weight[which], device),
        )


def train(
    model: nn.Module,
    data: EncodedSet,
    settings: TrainingSettings,
    *,
    vocab_size: int,
    seed: int,
    teacher: Teacher | None = None,
    label_share: float = 1.0,
    replay: EncodedSet | None = None,
    optimizer_state: OptimizerState | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> tuple[float, OptimizerState]:
    """Train the model's trainable parameters in place.

    Args:
        model: a causal LM with a head of at least ``vocab_size`` rows.
        data: what to train on; only its label rows are scored.
        settings: the phase's settings.
        vocab_size: size of the tokenizer's vocabulary; padded head rows beyond it are cut off.
        seed: orders the batches and drives dropout.
        teacher: sparse targets for the label rows of ``data``.
        label_share: lambda of the joint loss.
        replay: samples whose label loss is added at every step, a batch at a time, so that what the
            model knew of them is not forgotten.
        optimizer_state: moments from an earlier phase, as returned.
        on_step: called after each step with its number (from 1) and loss.

    Returns:
        The mean loss over the last tenth of the steps (nats per label row), and the optimizer's
        moments.
    """
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        named.values(),
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=settings.weight_decay,
    )
    if optimizer_state:
        restore_optimizer(optimizer, named, optimizer_state)
    device = next(iter(named.values())).device
    torch.manual_seed(seed)
    model.train()
    losses: list[float] = []
    batches = shuffled_batches(data, settings.batch_size, seed, device)
    replayed = shuffled_batches(replay, settings.batch_size, seed, device) if replay else None
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * schedule(step, settings)
        optimizer.zero_grad(set_to_none=True)
        loss = _backward(model, next(batches), vocab_size, settings, teacher, label_share)
        if replayed:
            loss += _backward(model, next(replayed), vocab_size, settings, None, 1.0)
        nn.utils.clip_grad_norm_(named.values(), settings.max_grad_norm)
        optimizer.step()
        losses.append(loss)
        if on_step:
            on_step(step + 1, losses[-1])
    model.eval()
    tail = losses[-max(1, len(losses) // 10) :]
    return float(np.mean(tail)) if tail else math.nan, optimizer_moments(optimizer, named)


def _backward(
    model: nn.Module,
    batch: Batch,
    vocab_size: int,
    settings: TrainingSettings,
    teacher: Teacher | None,
    label_share: float,
) -> float:
    """Add a batch's gradient to the parameters', a part at a time; returns its loss."""
    total = 0.0
    for part in batch.split(settings.micro_batch or len(batch.input_ids)):
        # The batch's loss is a mean over rows, of which parts have more or fewer.
        share = len(part.row) / max(1, len(batch.row))
        loss = share * batch_loss(
            model, part, vocab_size, teacher, label_share, settings.comparison
        )
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total


def batch_loss(
    model: nn.Module,
    batch: Batch,
    vocab_size: int,
    teacher: Teacher | None,
    label_share: float,
    comparison: Comparison = PLAIN,
) -> Float[Tensor, ""]:
    """The joint loss of one batch, without forming its logits where the model allows."""
    targets = teacher.rows(batch.index, batch.label.device) if teacher else None
    states = label_row_states(model, batch, vocab_size)
    if states is None:
        logits = label_row_logits(model, batch, vocab_size)  # [rows, vocab]
        return distillation_loss(logits, batch.label, targets, label_share, comparison)
    return fused_distillation_loss(
        states.hidden, states.head, batch.label, targets, label_share, comparison
    )


def schedule(step: int, settings: TrainingSettings) -> float:
    """Share of the peak learning rate at a step (from 0): linear warm-up, then cosine."""
    warmup = max(1, round(settings.warmup_ratio * settings.steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, settings.steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return settings.final_ratio + (1 - settings.final_ratio) * cosine


def shuffled_batches(
    data: EncodedSet, batch_size: int, seed: int, device: torch.device | str
) -> Iterator[Batch]:
    """Endless batches, epoch after epoch; each epoch sees every sample once."""
    rng = np.random.default_rng(seed)
    waiting = np.empty(0, dtype=np.int64)
    while True:
        while len(waiting) < batch_size:
            waiting = np.concatenate([waiting, rng.permutation(len(data))])
        yield data.batch(waiting[:batch_size], device)
        waiting = waiting[batch_size:]


def optimizer_moments(
    optimizer: torch.optim.Optimizer, named: dict[str, nn.Parameter]
) -> OptimizerState:
    """AdamW's moments and step counts as flat arrays, to be kept between messages."""
    state: OptimizerState = {}
    for name, parameter in named.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            state[f"{key}/{name}"] = np.asarray(value.detach().float().cpu().numpy())
    return state


def restore_optimizer(
    optimizer: torch.optim.Optimizer, named: dict[str, nn.Parameter], state: OptimizerState
) -> None:
    """Put moments back that ``optimizer_moments`` returned."""
    for key, value in state.items():
        kind, name = key.split("/", 1)
        parameter = named[name]
        tensor = torch.from_numpy(np.array(value))
        # The step count stays on the CPU, as AdamW keeps it.
        device = "cpu" if kind == "step" else parameter.device
        optimizer.state[parameter][kind] = tensor.to(device)

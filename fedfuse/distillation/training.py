"""The training loop of both sides: labels alone, or labels and a teacher.

What a step does follows from the weights, the seed and ``Training.state`` alone: the samples it
sees and the dropout it draws are functions of the seed and its position in the stream of samples.
So a phase can be stopped after any step and continued elsewhere, bit for bit, and the next phase of
the same kind goes on in the middle of an epoch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Int64
from numpy import ndarray
from torch import nn

from fedfuse.config.training import TrainingConfig
from fedfuse.data.sampling import parts_by_length, sample_indices, step_seed
from fedfuse.distillation.ewc import EWCPenalty, estimate_ewc
from fedfuse.distillation.oom import is_out_of_memory, smaller_parts
from fedfuse.distillation.optimizer_state import (
    TrainingState,
    optimizer_moments,
    restore_optimizer,
    restore_scaler,
    scaler_state,
)
from fedfuse.distillation.targets import batch_losses
from fedfuse.sparse import SparseDistribution
from fedfuse.tokenizers.dataset import TokenizedDataset

log = logging.getLogger(__name__)
MAX_TOKENS = "max-tokens"


def train(
    model: nn.Module,
    data: TokenizedDataset,
    settings: TrainingConfig,
    *,
    vocab_size: int,
    seed: int,
    teacher: SparseDistribution | None = None,
    replay: TokenizedDataset | None = None,
    autocast: str = "none",
    state: TrainingState | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> tuple[float, TrainingState]:
    """Train the model's trainable parameters in place, to the end of a phase.

    Args:
        model: see ``Training``, as for all but the last.
        data: what to train on.
        settings: the phase's settings.
        vocab_size: size of the tokenizer's vocabulary.
        seed: orders the samples and drives dropout.
        teacher: sparse targets for the label rows of ``data``.
        replay: samples whose label loss is added at every step.
        autocast: what products of the forward pass are computed in.
        state: of a phase that was stopped, or of the one before.
        on_step: called after each step with its number (from 1) and loss.

    Returns:
        The mean loss over the last tenth of the steps taken here (nats per label row; NaN without
        steps), and the state that the next phase of this kind begins with.
    """
    training = Training(
        model,
        data,
        settings,
        vocab_size=vocab_size,
        seed=seed,
        teacher=teacher,
        replay=replay,
        autocast=autocast,
        state=state,
    )
    losses: list[float] = []
    while training.step < settings.steps:
        losses.append(training.advance())
        if on_step:
            on_step(training.step, losses[-1])
    model.eval()
    tail = losses[-max(1, len(losses) // 10) :]
    return float(np.mean(tail)) if tail else math.nan, training.state()


class Training:
    """One training phase, a step at a time.

    Attributes:
        step: optimizer steps of this phase that are done.
        position: samples of ``data`` seen so far, in this phase and those before of its kind; as
            many were replayed.
        max_tokens: of a part of a step; what the settings say, or less since memory ran out.
    """

    def __init__(
        self,
        model: nn.Module,
        data: TokenizedDataset,
        settings: TrainingConfig,
        *,
        vocab_size: int,
        seed: int,
        teacher: SparseDistribution | None = None,
        replay: TokenizedDataset | None = None,
        autocast: str = "none",
        state: TrainingState | None = None,
    ) -> None:
        """Begin a phase, or go on with one.

        Args:
            model: a causal LM with a head of at least ``vocab_size`` rows.
            data: what to train on; only its label rows are scored.
            settings: the phase's settings.
            vocab_size: size of the tokenizer's vocabulary; padded head rows beyond it are cut off.
            seed: orders the samples and drives dropout; one for all phases of a kind, so that each
                sample is seen once per epoch.
            teacher: sparse targets for the label rows of ``data``.
            replay: samples whose label loss is added at every step, a batch at a time, so that what
                the model knew of them is not forgotten.
            autocast: what products of the forward pass are computed in, one of ``AUTOCAST``;
                float16 with a loss scale that adapts itself (Micikevicius et al., "Mixed Precision
                Training", arXiv 1710.03740). Losses and weights stay float32.
            state: of a phase that was stopped after some step, or of the phase before.
        """
        self.model, self.data, self.replay, self.settings = model, data, replay, settings
        self.vocab_size, self.seed, self.autocast = vocab_size, seed, autocast
        self.teacher = teacher
        self._named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._device = next(iter(self._named.values())).device
        self._optimizer = torch.optim.AdamW(
            self._named.values(),
            lr=settings.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=autocast == "float16")
        state = state or {}
        restore_optimizer(self._optimizer, self._named, state)
        restore_scaler(self._scaler, state)
        self._held = EWCPenalty.from_state(state, self._named)
        self.step, self.position = int(state.get("step", 0)), int(state.get("position", 0))
        self.max_tokens = int(state.get(MAX_TOKENS, 0)) or settings.max_tokens
        if settings.max_tokens:
            self.max_tokens = min(self.max_tokens, settings.max_tokens)

    def state(self) -> TrainingState:
        """All that is needed to go on but the weights, as flat arrays; nothing before a first step.

        ``step`` is 0 after a whole phase: what goes on is the next.
        """
        if not self.position:
            return {}
        return {
            "step": np.array(self.step % max(1, self.settings.steps)),
            "position": np.array(self.position),
            **optimizer_moments(self._optimizer, self._named),
            **scaler_state(self._scaler),
            **self._backed_off(),
            # The next phase holds what it begins with.
            **(self._held.state() if self._held and self.step < self.settings.steps else {}),
        }

    def _backed_off(self) -> TrainingState:
        """The size of parts that fits, where the configured one did not."""
        less = self.max_tokens != self.settings.max_tokens
        return {MAX_TOKENS: np.array(self.max_tokens)} if less else {}

    def advance(self) -> float:
        """One optimizer step; returns its loss, nats per label row."""
        settings = self.settings
        self.model.train()
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate * schedule(self.step, settings)
        while (loss := self._attempt()) is None:
            self.max_tokens = smaller_parts(self._lengths(), self.max_tokens)
            log.warning("out of memory: from now on %d tokens at once", self.max_tokens)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(self._named.values(), settings.max_grad_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._held:
            self._held.apply(self._named, self._optimizer.param_groups[0]["lr"])
        self.step += 1
        self.position += settings.batch_size
        return loss

    def _attempt(self) -> float | None:
        """A step's gradient and loss; None when memory ran out, with all that was taken let go."""
        self._optimizer.zero_grad(set_to_none=True)
        try:
            if self.step == 0 and self._held is None:
                self._held = self._consolidate()
            torch.manual_seed(step_seed(self.seed, self.position))
            return self._backward()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _consolidate(self) -> EWCPenalty | None:
        """Hold what the model is trusted with itself, where the settings say so."""
        if self.teacher is None or not self.settings.ewc:
            return None
        self.model.eval()
        held = estimate_ewc(
            self.model,
            self._named,
            self.data,
            self.teacher,
            self.settings,
            vocab_size=self.vocab_size,
            seed=step_seed(self.seed, self.position),
            max_tokens=self.max_tokens,
            autocast=self.autocast,
        )
        self.model.train()
        return held

    def _lengths(self) -> Int64[ndarray, " samples"]:
        """Tokens of each sample of the step, those that are replayed last."""
        address = self.seed, self.position, self.settings.batch_size
        sets = [self.data] if self.replay is None else [self.data, self.replay]
        return np.concatenate([s.lengths[sample_indices(len(s), *address)] for s in sets])

    def _backward(self) -> float:
        """Add a step's gradient to the parameters', a part at a time; returns its loss."""
        address = self.seed, self.position, self.settings.batch_size
        own = sample_indices(len(self.data), *address)
        lengths, rows, old_rows = self._lengths(), self.data.count(own), 0
        if self.replay is not None:
            replayed = sample_indices(len(self.replay), *address)
            old_rows = self.replay.count(replayed)
        total = torch.zeros((), device=self._device)
        for part in parts_by_length(lengths, self.max_tokens):
            batch = self.data.batch(own[part[part < len(own)]], self._device)
            here = len(batch.row)
            if self.replay is not None:
                old = part[part >= len(own)] - len(own)
                batch = batch.beside(self.replay.batch(replayed[old], self._device))
            new, old_loss = batch_losses(
                self.model,
                batch,
                self.vocab_size,
                self.teacher,
                self.settings.objective,
                taught=here,
                autocast=self.autocast,
            )
            # The step's losses are means over rows, of which parts have more or fewer.
            loss = here / max(1, rows) * new
            loss = loss + (len(batch.row) - here) / max(1, old_rows) * old_loss
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return float(total)


def schedule(step: int, settings: TrainingConfig) -> float:
    """Share of the peak learning rate at a step (from 0): linear warm-up, then cosine."""
    warmup = max(1, round(settings.warmup_ratio * settings.steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, settings.steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return settings.final_ratio + (1 - settings.final_ratio) * cosine

"""The training loop of both sides: labels alone, or labels and a teacher.

A step follows from the weights, the seed and ``Training.state`` alone: its samples and its dropout
are functions of the seed and the number of samples seen before. So a phase can be stopped after any
step and continued elsewhere, bit for bit, and the next phase of the same kind goes on in the middle
of an epoch.
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
from fedfuse.distillation.targets import Teacher, batch_losses
from fedfuse.errors import FedfuseError
from fedfuse.models.causal_lm import CausalLM
from fedfuse.models.devices import release_cache
from fedfuse.models.forward import seen_by
from fedfuse.models.layer_stack import train_mode
from fedfuse.models.precision import pass_cost
from fedfuse.tokenizers.dataset import TokenizedDataset

log = logging.getLogger(__name__)
# Key of the state: tokens of a part, where memory ran out with those of the config.
MAX_TOKENS = "max-tokens"


class NotFinite(FedfuseError):
    """A step's loss or gradient is infinite or no number."""


def train(
    lm: CausalLM,
    data: TokenizedDataset,
    config: TrainingConfig,
    *,
    seed: int,
    teacher: Teacher | None = None,
    replay: TokenizedDataset | None = None,
    state: TrainingState | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> tuple[float, TrainingState]:
    """Train the model's trainable parameters in place, to the end of a phase.

    Args:
        lm: see ``Training``, as for all but the last.
        data: the training set.
        config: the phase.
        seed: of the order of the samples and of dropout.
        teacher: sparse targets for the label rows of ``data``.
        replay: samples whose label loss is added at every step.
        state: of a phase that was stopped, or of the one before.
        on_step: called after each step with its number (from 1) and loss.

    Returns:
        The mean loss over the last tenth of the steps taken here (nats per label row; NaN without
        steps), and the state that the next phase of this kind begins with.

    Raises:
        NotFinite: where a step's loss or gradient is not; the weights are those before it.
    """
    training = Training(lm, data, config, seed=seed, teacher=teacher, replay=replay, state=state)
    losses: list[float] = []
    while training.step < config.steps:
        losses.append(training.advance())
        if on_step:
            on_step(training.step, losses[-1])
    lm.model.eval()
    tail = losses[-max(1, len(losses) // 10) :]
    return float(np.mean(tail)) if tail else math.nan, training.state()


class Training:
    """One training phase, a step at a time.

    Attributes:
        step: optimizer steps of this phase that are done.
        samples_seen: samples of ``data`` seen in this phase and those before of its kind; as many
            were replayed.
        max_tokens: tokens of a part of a step: the config's, or fewer since memory ran out.
    """

    def __init__(
        self,
        lm: CausalLM,
        data: TokenizedDataset,
        config: TrainingConfig,
        *,
        seed: int,
        teacher: Teacher | None = None,
        replay: TokenizedDataset | None = None,
        state: TrainingState | None = None,
    ) -> None:
        """Begin a phase, or go on with one.

        Args:
            lm: the student. With ``lm.autocast`` float16 the loss scale adapts itself (Micikevicius
                et al., "Mixed Precision Training", arXiv 1710.03740).
            data: the training set; only its label rows are scored.
            config: the phase.
            seed: of the order of the samples and of dropout; one for all phases of a kind, so that
                each sample is seen once per epoch.
            teacher: sparse targets for the label rows of ``data``.
            replay: samples whose label loss is added at every step, a batch at a time, so that the
                model does not forget them.
            state: of a phase that was stopped after some step, or of the phase before.
        """
        self.lm, self.config = lm, config
        self.data = seen_by(lm, data)
        self.replay = None if replay is None else seen_by(lm, replay)
        self.seed, self.teacher = seed, teacher
        self._named = {n: p for n, p in lm.model.named_parameters() if p.requires_grad}
        self._device = next(iter(self._named.values())).device
        self._optimizer = torch.optim.AdamW(
            self._named.values(),
            lr=config.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._pass_cost = pass_cost(lm.model, self._device)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=lm.autocast == "float16")
        state = state or {}
        restore_optimizer(self._optimizer, self._named, state)
        restore_scaler(self._scaler, state)
        self._ewc = EWCPenalty.from_state(state, self._named)
        self.step = int(state.get("step", 0))
        self.samples_seen = int(state.get("samples_seen", 0))
        self.max_tokens = int(state.get(MAX_TOKENS, 0)) or config.max_tokens
        if config.max_tokens:
            self.max_tokens = min(self.max_tokens, config.max_tokens)

    def state(self) -> TrainingState:
        """All that is needed to go on but the weights, as flat arrays; nothing before a first step.

        ``step`` is 0 after a whole phase: what goes on is the next.
        """
        if not self.samples_seen:
            return {}
        return {
            "step": np.array(self.step % max(1, self.config.steps)),
            "samples_seen": np.array(self.samples_seen),
            **optimizer_moments(self._optimizer, self._named),
            **scaler_state(self._scaler),
            **self._reduced_max_tokens(),
            # The next phase is anchored where it begins.
            **(self._ewc.state() if self._ewc and self.step < self.config.steps else {}),
        }

    def _reduced_max_tokens(self) -> TrainingState:
        """The size of parts that fits, where the configured one did not."""
        less = self.max_tokens != self.config.max_tokens
        return {MAX_TOKENS: np.array(self.max_tokens)} if less else {}

    def advance(self) -> float:
        """Take one optimizer step; returns its loss, nats per label row.

        Raises:
            NotFinite: for a loss or a gradient that is not finite; the step is not taken.
        """
        config = self.config
        train_mode(self.lm.model)
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate * schedule(self.step, config)
        while (loss := self._attempt()) is None:
            self.max_tokens = smaller_parts(self._lengths(), self.max_tokens)
            log.warning("out of memory: from now on %d tokens at once", self.max_tokens)
            release_cache(self._device)
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self._named.values(), config.max_grad_norm)
        # A loss scale that is too large is no fault: the scaler takes no step, and lowers it.
        if not math.isfinite(loss) or not (self._scaler.is_enabled() or math.isfinite(norm)):
            found = f"loss {loss:g}, norm of the gradient {float(norm):g}"
            raise NotFinite(
                f"training step {self.step + 1}: expected finite numbers, got {found}; the step is "
                "not taken. Try a lower learning rate, or bfloat16 in place of float16"
            )
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._ewc:
            self._ewc.apply(self._named, self._optimizer.param_groups[0]["lr"])
        self.step += 1
        self.samples_seen += config.batch_size
        return loss

    def _attempt(self) -> float | None:
        """A step's gradient and loss; None when memory ran out, with all that was taken let go."""
        self._optimizer.zero_grad(set_to_none=True)
        try:
            if self.step == 0 and self._ewc is None:
                self._ewc = self._estimate_ewc()
            seed_dropout(step_seed(self.seed, self.samples_seen), self._device)
            return self._backward()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _estimate_ewc(self) -> EWCPenalty | None:
        """Penalty of this phase, where the config asks for one and there is a teacher."""
        if self.teacher is None or not self.config.ewc:
            return None
        self.lm.model.eval()
        penalty = estimate_ewc(
            self.lm,
            self._named,
            self.data,
            self.teacher,
            self.config,
            seed=step_seed(self.seed, self.samples_seen),
            max_tokens=self.max_tokens,
        )
        train_mode(self.lm.model)
        return penalty

    def _indices(self, data: TokenizedDataset) -> Int64[ndarray, " batch"]:
        """Samples of a data set that the step sees."""
        return sample_indices(len(data), self.seed, self.samples_seen, self.config.batch_size)

    def _lengths(self) -> Int64[ndarray, " samples"]:
        """Tokens of each sample of the step, those that are replayed last."""
        sets = [self.data] if self.replay is None else [self.data, self.replay]
        return np.concatenate([s.lengths[self._indices(s)] for s in sets])

    def _backward(self) -> float:
        """Add a step's gradient to the parameters', a part at a time; returns its loss."""
        own = self._indices(self.data)
        lengths, rows, old_rows = self._lengths(), self.data.num_label_rows(own), 0
        if self.replay is not None:
            replayed = self._indices(self.replay)
            old_rows = self.replay.num_label_rows(replayed)
        total = torch.zeros((), device=self._device)
        for part in parts_by_length(lengths, self.max_tokens, self._pass_cost):
            batch = self.data.batch(own[part[part < len(own)]], self._device)
            here = len(batch.row)
            if self.replay is not None:
                old = part[part >= len(own)] - len(own)
                batch = batch.concat(self.replay.batch(replayed[old], self._device))
            new, old_loss = batch_losses(
                self.lm, batch, self.teacher, self.config.objective, taught=here
            )
            # The step's losses are means over rows, of which parts have more or fewer.
            loss = here / max(1, rows) * new
            loss = loss + (len(batch.row) - here) / max(1, old_rows) * old_loss
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return float(total)


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the device's generator, and the CPU's.

    As ``torch.manual_seed``, which keeps a note, with a stack trace, for every kind of device that
    was not used yet: at every step that would be time and memory.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)


def schedule(step: int, config: TrainingConfig) -> float:
    """Share of the peak learning rate at a step (from 0): linear warm-up, then cosine."""
    warmup = max(1, round(config.warmup_ratio * config.steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.final_ratio + (1 - config.final_ratio) * cosine

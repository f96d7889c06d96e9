"""What a model comes to without teachers, by a federation's means and as well as these can be used.

Steps and learning rates that suit a federation are too many or too high for training on a few
labels again and again. So validation samples judge what was learned, after a part of the first
round and then more seldom: what did harm is taken back, and the learning rate halved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedfuse.algorithms.effort import Effort
from fedfuse.algorithms.local_model import LocalModel
from fedfuse.config.training import TrainingConfig
from fedfuse.distillation.optimizer_state import TrainingState
from fedfuse.distillation.training import NotFinite
from fedfuse.tokenizers.dataset import TokenizedDataset

# Parts that do harm, one after another, before it ends.
PATIENCE = 2


@dataclass(frozen=True, slots=True)
class LabelPhase:
    """A phase of a round that learns from labels alone.

    Attributes:
        data: what it learns from.
        settings: as in the federation.
        seed: of all its rounds.
        replay: see ``distillation.training.train``.
        public: whether ``data`` is the public set; else it is private.
        on_step: see ``distillation.training.train``.
    """

    data: TokenizedDataset
    settings: TrainingConfig
    seed: int
    replay: TokenizedDataset | None = None
    public: bool = False
    on_step: Callable[[int, float], None] | None = None


def train_baseline(
    model: LocalModel,
    phases: Sequence[LabelPhase],
    rounds: int,
    held_out: TokenizedDataset | None,
) -> Effort:
    """Learn from labels alone, in at most as many steps as so many rounds of the phases have.

    Args:
        model: whose adapter is trained, from where it is.
        phases: of a round, in their order.
        rounds: 0 or more.
        held_out: validation samples; with None, nothing is judged.

    Returns:
        What it took, with what was taken back.
    """
    states: list[TrainingState | None] = [None] * len(phases)
    best = _mean_loss(model, held_out) if held_out else np.inf
    effort, rate, harms = Effort(), 1.0, 0
    for steps in zip(*(_parts(phase.settings.steps, rounds) for phase in phases), strict=True):
        if not sum(steps) or harms == PATIENCE:
            continue
        kept, finite = (model.adapter, list(states)), True
        for i, (phase, number) in enumerate(zip(phases, steps, strict=True)):
            learning_rate = rate * phase.settings.learning_rate
            settings = replace(phase.settings, steps=number, learning_rate=learning_rate)
            try:
                _, states[i] = model.learn(
                    phase.data,
                    settings,
                    seed=phase.seed,
                    replay=phase.replay,
                    state=states[i],
                    on_step=phase.on_step,
                )
            except NotFinite:
                finite = False
            private = not phase.public or phase.replay is not None
            effort += Effort.of(settings, private=private, public=phase.public)
        now = _mean_loss(model, held_out) if held_out else best
        if finite and now <= best:
            best, harms = now, 0
        else:
            model.adapter, states = kept
            rate, harms = rate / 2, harms + 1
    return effort


def _parts(steps: int, rounds: int) -> Iterator[int]:
    """Steps of each part: two quarters and a half of the first round, then whole rounds."""
    for number in range(rounds):
        quarter = 0 if number else steps // 4
        if not number:
            yield from (quarter, quarter)
        yield steps - 2 * quarter


def _mean_loss(model: LocalModel, data: TokenizedDataset) -> float:
    return float(model.losses(data).mean())

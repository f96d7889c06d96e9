"""Statistics of candidates made by hand, for tests of rules."""

from __future__ import annotations

import numpy as np

from fedfuse.fusion.teacher_stats import StackedStats


def made_up(
    rng: np.random.Generator, samples: int, candidates: int, width: int | None = 4
) -> StackedStats:
    """Random evidence; one to three rows a sample, some of which some teachers do not speak of."""
    offsets = np.concatenate([[0], rng.integers(1, 4, samples).cumsum()])
    rows = int(offsets[-1])
    usable = rng.random((rows, candidates)) < 0.8
    usable[:, 0] = True

    def per_row(low: float, high: float) -> np.ndarray:
        return np.where(usable, rng.uniform(low, high, usable.shape), 0).astype(np.float32)

    def per_sample(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (samples, candidates)).astype(np.float32)

    return StackedStats(
        offsets=offsets,
        loss=per_sample(0.1, 0.8),
        usable=usable,
        label_logprob=per_row(-4, -0.1),
        entropy=per_sample(0, 2),
        margin=per_sample(0, 1),
        kept_mass=per_sample(0.8, 1),
        cross_entropy_to_student=per_row(0.5, 3),
        context_loss=per_sample(0.1, 0.6),
        state=None if width is None else rng.normal(size=(samples, width)).astype(np.float32),
    )


def of_losses(losses: np.ndarray) -> StackedStats:
    """Evidence that says nothing but the losses ``[N, C]``; one row a sample."""
    flat = np.zeros_like(losses)
    return StackedStats(
        offsets=np.arange(len(losses) + 1),
        loss=losses,
        usable=np.ones(losses.shape, dtype=bool),
        label_logprob=flat,
        entropy=flat,
        margin=flat,
        kept_mass=flat,
        cross_entropy_to_student=flat,
        context_loss=flat,
    )


def first_teacher(stats: StackedStats) -> np.ndarray:
    """A user's own rule: ``[N, C]`` all weight to the first teacher."""
    weights = np.zeros_like(stats.loss)
    weights[:, 1] = 1
    return weights


def two_domains(
    rng: np.random.Generator, samples: int, experts: tuple[float, float], own: float
) -> tuple[StackedStats, np.ndarray]:
    """Even samples are of one domain, odd ones of the other; teacher 1 is to know the even ones.

    Args:
        rng: of labels and states.
        samples: an even number.
        experts: mean log-probability of a label for the expert of a sample's domain, and for the
            other teacher.
        own: the same for the learning model.

    Returns:
        The evidence, one row a sample, and ``[N]`` the column of the sample's expert.
    """
    expert = np.arange(samples) % 2 + 1
    mean = np.full((samples, 3), experts[1])
    mean[:, 0] = own
    mean[np.arange(samples), expert] = experts[0]
    # Single labels are noisy witnesses.
    logprob = np.minimum(mean + rng.normal(scale=1.0, size=mean.shape), -0.01).astype(np.float32)
    state = rng.normal(scale=0.3, size=(samples, 4)) + np.where(expert == 1, 1, -1)[:, None]
    flat = np.zeros((samples, 3), dtype=np.float32)
    return StackedStats(
        offsets=np.arange(samples + 1),
        loss=-logprob,
        usable=np.ones((samples, 3), dtype=bool),
        label_logprob=logprob,
        entropy=flat + 1,
        margin=flat + 0.5,
        kept_mass=flat + 1,
        cross_entropy_to_student=flat + 1,
        context_loss=flat + 0.3,
        state=state.astype(np.float32),
    ), expert

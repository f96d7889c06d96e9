"""Knowledge interference: how often and by how much fusion makes a model worse.

For every model and domain, the loss before and after fusion is compared on held-out data. The
interference rate is the share of changes that are worse beyond noise, the interference depth their
mean rise (Kong et al., Fusion-X, arXiv 2505.23844, measure by the tasks that fusion harms; the
intervals are this project's).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from fedfuse.errors import FedfuseError

# One-sided 95 %: how far a mean of noise lies above zero once in twenty times.
ONE_SIDED = 1.645
_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class LossChange:
    """Loss of one model on one domain in one run, before and after fusion.

    Attributes:
        seed: seed of the run; intervals resample seeds.
        model: name of the model.
        domain: name of the domain.
        before: loss before fusion, such as nats per byte.
        after: loss after it, in the same unit.
        noise: largest rise that is no more than noise, 0 or more; see ``paired_noise``.
    """

    seed: int
    model: str
    domain: str
    before: float
    after: float
    noise: float = 0.0

    @property
    def worse(self) -> bool:
        """Whether the loss rose beyond noise."""
        return self.after - self.before > self.noise


@dataclass(frozen=True, slots=True)
class Interference:
    """Rate and depth, with intervals over seeds.

    Attributes:
        rate: share of changes that are worse, in [0, 1].
        rate_interval: lower and upper end.
        depth: mean rise of the changes that are worse, in the losses' unit; 0 where there is none.
        depth_interval: lower and upper end.
    """

    rate: float
    rate_interval: tuple[float, float]
    depth: float
    depth_interval: tuple[float, float]


def measure_interference(
    changes: Sequence[LossChange], *, level: float = 0.05, seed: int = 0
) -> Interference:
    """Rate and depth over all changes of all seeds.

    The intervals are percentiles of a bootstrap over seeds, a seed's changes staying together,
    since they share teachers and data. With one seed they have no width.

    Args:
        changes: at least one.
        level: the intervals leave out this much, half at each end.
        seed: of the resampling.

    Raises:
        FedfuseError: without changes.
    """
    if not changes:
        raise FedfuseError("interference: expected at least one loss change, got none")
    seeds, owner = np.unique([change.seed for change in changes], return_inverse=True)
    rise = [change.after - change.before if change.worse else 0.0 for change in changes]
    # [seeds] each: number of changes, of worse ones, and the sum of their rises
    count = np.bincount(owner).astype(np.float64)
    worse = np.bincount(owner, [change.worse for change in changes])
    gained = np.bincount(owner, rise)
    drawn = np.random.default_rng(seed).integers(len(seeds), size=(_DRAWS, len(seeds)))
    rates = worse[drawn].sum(1) / count[drawn].sum(1)
    depths = gained[drawn].sum(1) / np.maximum(worse[drawn].sum(1), 1)
    return Interference(
        float(worse.sum() / count.sum()),
        _interval(rates, level),
        float(gained.sum() / max(worse.sum(), 1)),
        _interval(depths, level),
    )


def paired_noise(before: Float[ndarray, " samples"], after: Float[ndarray, " samples"]) -> float:
    """Largest rise of the mean paired difference by chance: 1.645 standard errors.

    Infinite for fewer than two samples, from which none can be estimated.
    """
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    if len(difference) < 2:
        return float("inf")
    return float(ONE_SIDED * difference.std(ddof=1) / np.sqrt(len(difference)))


def _interval(values: ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [level / 2, 1 - level / 2])
    return float(low), float(high)

"""Knowledge interference: what fusion made worse, how often and how much.

For every cell, a model on a task or domain, the metric before and after fusion is compared on
held-out data. Interference rate is the share of cells that got worse beyond noise, interference
depth the mean loss that those cells gained (Kong et al., Fusion-X, arXiv 2505.23844, measure by the
tasks that fusion harms; the intervals are this project's).
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
class Cell:
    """One model on one domain in one run.

    Attributes:
        seed: of the run; what is resampled.
        model: its name.
        domain: its name.
        before: loss before fusion, such as nats per byte.
        after: loss after it, the same unit.
        noise: how much of a rise is no more than noise, 0 or more; see ``paired_noise``.
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
        rate: share of cells that got worse, in [0, 1].
        rate_interval: lower and upper end.
        depth: mean rise of the cells that got worse, in the losses' unit; 0 where there is none.
        depth_interval: lower and upper end.
    """

    rate: float
    rate_interval: tuple[float, float]
    depth: float
    depth_interval: tuple[float, float]


def measure_interference(
    cells: Sequence[Cell], *, level: float = 0.05, seed: int = 0
) -> Interference:
    """Rate and depth over all cells of all seeds.

    The intervals are percentiles of a bootstrap over seeds, a seed's cells staying together, since
    they share teachers and data. With one seed they have no width.

    Args:
        cells: at least one.
        level: the intervals leave out this much, half at each end.
        seed: of the resampling.

    Raises:
        FedfuseError: without cells.
    """
    if not cells:
        raise FedfuseError("interference: no cells; allowed: at least one")
    seeds = sorted({cell.seed for cell in cells})
    of_seed = [[cell for cell in cells if cell.seed == number] for number in seeds]
    # [seeds] each: number of cells, of worse ones, and the sum of what these gained
    count = np.array([len(group) for group in of_seed], dtype=np.float64)
    worse = np.array([sum(cell.worse for cell in group) for group in of_seed], dtype=np.float64)
    gained = np.array(
        [sum(cell.after - cell.before for cell in group if cell.worse) for group in of_seed]
    )
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
    """How far the mean of the paired differences may rise by chance: 1.645 standard errors.

    Infinite for fewer than two samples, which cannot tell.
    """
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    if len(difference) < 2:
        return float("inf")
    return float(ONE_SIDED * difference.std(ddof=1) / np.sqrt(len(difference)))


def _interval(values: ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [level / 2, 1 - level / 2])
    return float(low), float(high)

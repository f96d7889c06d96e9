"""Confidence intervals of what is measured on samples.

Accuracies have Wilson's interval, which holds for few questions and for accuracies near 0 and 1:
E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the
American Statistical Association 22, 1927. A mean over domains has that of the domains' intervals by
the method of variance estimates recovery: G. Y. Zou and A. Donner, "Construction of confidence
limits about effect measures", Statistics in Medicine 27, 2008.

Everything else has the basic interval of a bootstrap over samples: A. C. Davison and D. V. Hinkley,
"Bootstrap Methods and their Application", 1997, section 5.2. It turns the draws' distribution round
the value, and so takes back the bias of measures that are larger on fewer samples, as errors of
calibration are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

LEVEL = 0.95  # of all intervals
DRAWS = 2000
_QUANTILE = NormalDist().inv_cdf((1 + LEVEL) / 2)  # 1.96


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured value with its confidence interval, of ``LEVEL``.

    Attributes:
        value: what was measured.
        low: lower end, at most ``value``.
        high: upper end, at least ``value``.
    """

    value: float
    low: float
    high: float

    def times(self, factor: float) -> Estimate:
        """The same in another unit; ``factor`` is above 0."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)


def wilson(share: float, count: int) -> Estimate:
    """Share of ``count`` independent questions, 1 or more, with Wilson's score interval."""
    weight = _QUANTILE**2 / count
    middle = (share + weight / 2) / (1 + weight)
    half = _QUANTILE / (1 + weight) * np.sqrt(share * (1 - share) / count + weight / count / 4)
    # Rounding may put an end on the wrong side of 0, 1 or the share itself.
    low, high = min(max(middle - half, 0.0), share), max(min(middle + half, 1.0), share)
    return Estimate(share, float(low), float(high))


def mean_estimate(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of independent estimates, one or more, with the interval recovered from theirs."""
    value, low, high = np.array([(e.value, e.low, e.high) for e in estimates]).T
    mean = float(value.mean())
    below = np.sqrt(((value - low) ** 2).sum()) / len(value)
    above = np.sqrt(((high - value) ** 2).sum()) / len(value)
    return Estimate(mean, mean - float(below), mean + float(above))


def resample(
    statistic: Callable[[Int64[ndarray, " samples"]], ndarray], size: int, seed: Sequence[int]
) -> Float64[ndarray, "draws ..."]:
    """``[DRAWS, ...]`` a statistic of so many of ``size`` samples, drawn with replacement.

    Args:
        statistic: numbers, always as many, of the samples with the indices it is given.
        size: number of samples, 1 or more.
        seed: seed of the draws.
    """
    rng = np.random.default_rng(seed)
    return np.array([statistic(rng.integers(size, size=size)) for _ in range(DRAWS)], np.float64)


def basic_interval(value: float, draws: Float64[ndarray, " draws"], most: float) -> Estimate:
    """A value with the basic bootstrap interval, widened to hold the value.

    Args:
        value: what was measured.
        draws: the same of resampled data.
        most: largest value that is possible; the smallest is 0.
    """
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    ends = np.clip([2 * value - high, 2 * value - low], 0, most)
    return Estimate(value, float(min(ends[0], value)), float(max(ends[1], value)))

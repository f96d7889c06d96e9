"""Calibration: whether a model that gives its choice a share of 0.8 is right in 80 % of such cases.

Expected calibration error: C. Guo et al., "On Calibration of Modern Neural Networks", arXiv
1706.04599, equation 3, with their 15 bins of equal width. Brier score: G. W. Brier, "Verification
of forecasts expressed in terms of probability", Monthly Weather Review 78, 1950.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray

BINS = 15


def bin_gaps(
    shares: Float32[ndarray, "questions options"], correct: Float64[ndarray, " questions"]
) -> tuple[Int64[ndarray, " questions"], Float64[ndarray, " questions"]]:
    """Bin of each question, and by how much it speaks for too little confidence, in [-1, 1].

    The confidence is the largest share; bin m of M is of those above m / M and up to (m + 1) / M.

    Args:
        shares: ``[Q, O]`` log of each option's share of its question; -inf is no option.
        correct: ``[Q]`` whether the largest is the right one's; see ``options.correctness``.
    """
    confidence = np.exp(shares.astype(np.float64)).max(1)
    number = np.ceil(confidence * BINS).astype(np.int64) - 1
    return np.clip(number, 0, BINS - 1), correct - confidence


def mean_gaps(
    bins: Int64[ndarray, " questions"], gaps: Float64[ndarray, " questions"]
) -> Float64[ndarray, " bins"]:
    """``[BINS]`` sum of each bin's gaps over the number of questions, 1 or more."""
    return np.bincount(bins, gaps, BINS) / len(gaps)


def expected_calibration_error(gaps: Float64[ndarray, "*more bins"]) -> Float64[ndarray, "*more"]:
    """``[...]`` mean over questions of how far their bin's accuracy is from its confidence, 0 to 1.

    Args:
        gaps: ``[..., BINS]`` result of ``mean_gaps``, or a mean of such.
    """
    found: Float64[ndarray, "*more"] = np.abs(gaps).sum(-1)
    return found


def brier_scores(
    shares: Float32[ndarray, "questions options"], right: Int64[ndarray, " questions"]
) -> Float64[ndarray, " questions"]:
    """``[Q]`` squared distance of a question's shares from the right option's 1, 0 to 2.

    Args:
        shares: ``[Q, O]`` log of each option's share of its question; -inf is no option.
        right: ``[Q]`` index of the right option.
    """
    distance = np.exp(shares.astype(np.float64))
    distance[np.arange(len(right)), right] -= 1
    found: Float64[ndarray, " questions"] = (distance**2).sum(1)
    return found

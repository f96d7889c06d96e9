"""Log-probabilities as small whole numbers, fine where probability is large.

``code = round(steps * log(1 - logprob))``: the step grows with ``1 - logprob``, as a float's does
with its magnitude, but never shrinks below that at 1: a finer one would tell nothing about a
probability. Codes ascend where log-probabilities descend; the largest stands for no probability.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int64
from numpy import ndarray

# Slack for rounding in whoever computed the log-probabilities.
_ROUNDING = 1e-5


@dataclass(frozen=True, slots=True)
class LogprobQuantizer:
    """How finely log-probabilities are told.

    Attributes:
        steps: codes per unit of ``log(1 - logprob)``.
        bits: width of a code, 8 or 16.
    """

    steps: int
    bits: int

    @property
    def zero_code(self) -> int:
        """Code of -inf, the largest."""
        return (1 << self.bits) - 1

    @property
    def error(self) -> float:
        """``|decoded - logprob| <= error * (1 + |logprob|)`` down to ``smallest``."""
        return float(np.expm1(0.5 / self.steps))

    @property
    def smallest(self) -> float:
        """The lowest log-probability that is told apart from lower ones."""
        return float(-np.expm1((self.zero_code - 1) / self.steps))

    def codes(self, logprobs: Float[ndarray, " *shape"]) -> Int64[ndarray, " *shape"]:
        """Codes of log-probabilities; those below ``smallest`` get its code, -inf its own."""
        distance = np.maximum(-logprobs.astype(np.float64), 0)
        scaled = np.rint(self.steps * np.log1p(distance))
        limited: ndarray = np.minimum(scaled, self.zero_code - 1).astype(np.int64)
        limited[np.isinf(distance)] = self.zero_code
        return limited

    def logprobs(self) -> Float[ndarray, " codes"]:
        """``[2**bits]`` float64: the log-probability of every code."""
        return _table(self)


def nearly_equal(one: Float[ndarray, " n"], other: Float[ndarray, " n"]) -> ndarray:
    """``[n]`` where two finite log-probabilities are equal but for rounding."""
    finite = np.isfinite(one) & np.isfinite(other)
    difference = np.abs(np.subtract(one, other, out=np.zeros(len(one)), where=finite))
    close: ndarray = difference <= _ROUNDING * (1 + np.abs(np.where(finite, one, 0)))
    both: ndarray = finite & close
    return both


@lru_cache(maxsize=8)
def _table(quantizer: LogprobQuantizer) -> Float[ndarray, " codes"]:
    table = -np.expm1(np.arange(quantizer.zero_code + 1) / quantizer.steps)
    table[-1] = -np.inf
    table.setflags(write=False)
    return table


# By the run config's knowledge.logprob-bits. A 16-bit code is as good as float16, whose error is up
# to 2**-11 * |logprob|, from -1 on.
QUANTIZERS = {16: LogprobQuantizer(2048, 16), 8: LogprobQuantizer(48, 8)}

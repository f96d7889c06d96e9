"""Acceptance test: a round's new adapter is kept only if it makes no domain worse beyond noise.

The same held-out samples are scored before and after. In every domain with at least
``LEAST_SAMPLES`` of them, and over all samples together, the mean difference (after less before)
has a one-sided bootstrap interval over samples, paired. A group is worse when the interval's lower
end is above zero; one worse group is enough to roll the round back. The level is divided by the
number of groups (Bonferroni), so a round that changes nothing is rolled back with a probability of
about ``level`` at most, however many domains there are.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, percentile intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from fedfuse.errors import check

# With fewer, an interval from resampling is too narrow to mean anything.
LEAST_SAMPLES = 8
OVERALL = ""
_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Change:
    """Change of the loss on the held-out samples of one domain.

    Attributes:
        mean: loss after less loss before, in the losses' unit; below zero is better.
        lower: lower end of its one-sided interval.
        worse: whether the loss rose beyond noise.
    """

    mean: float
    lower: float
    worse: bool


@dataclass(frozen=True, slots=True)
class AcceptanceResult:
    """Outcome of the test.

    Attributes:
        keep: whether no group got worse beyond noise.
        changes: change by domain; ``OVERALL`` is all samples together.
    """

    keep: bool
    changes: dict[str, Change]

    @property
    def worse(self) -> list[str]:
        """Domains that got worse."""
        return [domain for domain, change in self.changes.items() if change.worse]


def acceptance_test(
    before: Float[ndarray, " samples"],
    after: Float[ndarray, " samples"],
    domains: Sequence[str],
    *,
    level: float = 0.05,
    seed: int = 0,
) -> AcceptanceResult:
    """Test whether a round may be kept.

    Args:
        before: ``[H]`` loss of each held-out sample under the old adapter, such as nats per byte.
        after: ``[H]`` under the new one.
        domains: ``[H]`` domain of each; all the same where none is known.
        level: chance to roll back a round that changes nothing, in (0, 1).
        seed: seed of the resampling.

    Raises:
        FedfuseError: for losses that are not finite or do not belong together, or no samples.
    """
    sizes = len(before), len(after), len(domains)
    expected = "one or more losses before, as many after, and domains"
    check("acceptance test", sizes, expected, len(before) and len(set(sizes)) == 1)
    check("acceptance test", level, "a level above 0 and below 1", 0 < level < 1)
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    finite = np.isfinite(difference).all()
    check("acceptance test", "NaN or infinity", "finite losses", finite)
    names = np.asarray(domains)
    groups = {OVERALL: difference}
    for domain in sorted(set(domains)):
        found = difference[names == domain]
        if LEAST_SAMPLES <= len(found) < len(difference):
            groups[domain] = found
    rng = np.random.default_rng(seed)
    changes = {}
    for domain, found in groups.items():
        means = rng.choice(found, (_DRAWS, len(found))).mean(1)
        lower = float(np.quantile(means, level / len(groups)))
        changes[domain] = Change(float(found.mean()), lower, lower > 0)
    return AcceptanceResult(not any(change.worse for change in changes.values()), changes)

"""Share of each domain that each teacher taught."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedfuse.data.sample import Sample
from fedfuse.fusion.weights import Weights

NOBODY = "none"


def teacher_shares(
    samples: Sequence[Sample], weights: Weights, teachers: Sequence[str]
) -> dict[tuple[str, str], float]:
    """Each teacher's share of each domain's public samples.

    Args:
        samples: the N public samples.
        weights: ``[N, C]`` column 0 the learning model itself.
        teachers: names of columns 1 to C - 1.

    Returns:
        Share in [0, 1] by (domain, teacher); what no teacher has is ``none``'s.
    """
    domains = np.array([sample.domain for sample in samples])
    shares: dict[tuple[str, str], float] = {}
    for domain in sorted(set(domains.tolist())):
        mean = weights[domains == domain].mean(0)  # [C]
        for column, teacher in enumerate(teachers, start=1):
            shares[domain, teacher] = min(1.0, float(mean[column]))
        # Soft weights may sum to a hair over one.
        shares[domain, NOBODY] = max(0.0, float(1 - mean[1:].sum()))
    return shares

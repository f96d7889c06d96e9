"""Slow, obvious versions of selection (FedMKT's Algorithm 2) and of fusion (dense vectors)."""

from __future__ import annotations

import math
from collections.abc import Sequence


def dual_min_ce(losses: Sequence[Sequence[float]]) -> list[list[float]]:
    """Sample by sample: the first teacher of smallest loss, if that is below the own loss."""
    result = []
    for own, *teachers in losses:
        row = [0.0] * (1 + len(teachers))
        chosen, smallest = None, math.inf
        for number, loss in enumerate(teachers, start=1):
            if loss < smallest:
                chosen, smallest = number, loss
        if chosen is not None and smallest < own:
            row[chosen] = 1.0
        result.append(row)
    return result


def fuse_row(
    candidates: Sequence[tuple[Sequence[int], Sequence[float], float, float]],
    weights: Sequence[float],
    k: int,
) -> tuple[dict[int, float], float, float]:
    """One row: each candidate is (ids, logprobs, tail, usable).

    Returns:
        The k largest probabilities by token, the probability outside them, and the row's weight.
    """
    trust = [weight * c[3] for weight, c in zip(weights, candidates, strict=True)]
    total = sum(trust)
    if total == 0:
        return {}, 0.0, 0.0
    dense: dict[int, float] = {}
    outside = 0.0
    for (ids, logprobs, tail_logprob, _), share in zip(candidates, trust, strict=True):
        outside += share / total * math.exp(tail_logprob)
        for token, logprob in zip(ids, logprobs, strict=True):
            dense[token] = dense.get(token, 0.0) + share / total * math.exp(logprob)
    largest = sorted((token for token in dense if dense[token] > 0), key=lambda t: -dense[t])
    outside += sum(dense[token] for token in largest[k:])
    return {token: dense[token] for token in largest[:k]}, outside, min(total, 1.0)

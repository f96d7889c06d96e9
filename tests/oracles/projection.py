"""Slow, obvious version of projection: one dictionary per row."""

from __future__ import annotations

import math
from collections.abc import Sequence


def project_row(
    ids: Sequence[int],
    logprobs: Sequence[float],
    tail_logprob: float,
    table: Sequence[int],
    rule: str,
) -> tuple[dict[int, float], float]:
    """Probabilities by target id, and the probability outside them."""
    result: dict[int, float] = {}
    rest = math.exp(tail_logprob)
    for token_id, logprob in zip(ids, logprobs, strict=True):
        probability = math.exp(logprob)
        goal = int(table[token_id])
        if probability == 0.0:
            continue
        if goal not in result:
            result[goal] = probability
        elif rule == "sum":
            result[goal] += probability
        else:
            rest += probability
    return result, rest

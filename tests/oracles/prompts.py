"""Slow, obvious versions of the attention over uploaded tokens, and of Kneedle."""

from __future__ import annotations

import math
from collections.abc import Sequence

Vectors = Sequence[Sequence[float]]


def cosine(left: Sequence[float], right: Sequence[float]) -> float:
    """Eq. 5; 0 where a vector is zero."""
    product = sum(a * b for a, b in zip(left, right, strict=True))
    lengths = math.hypot(*left) * math.hypot(*right)
    return product / lengths if lengths else 0.0


def attention(prompts: Sequence[Vectors]) -> list[list[float]]:
    """Eq. 6 and the softmax after it: a weight for each token of each client's prompt."""
    weights = []
    for k, own in enumerate(prompts):
        sums = [
            sum(cosine(e, f) for j, other in enumerate(prompts) if j != k for f in other)
            for e in own
        ]
        total = sum(math.exp(w) for w in sums)
        weights.append([math.exp(w) / total for w in sums])
    return weights


def support(prompts: Sequence[Vectors]) -> list[list[float]]:
    """Mean over the other clients of the best cosine; at least 0."""
    return [
        [
            max(
                0.0,
                sum(max(cosine(e, f) for f in other) for j, other in enumerate(prompts) if j != k)
                / (len(prompts) - 1),
            )
            for e in own
        ]
        for k, own in enumerate(prompts)
    ]


def kneedle(values: Sequence[float]) -> float | None:
    """The deepest elbow of rising values, for sensitivity 1.

    Turned round, a convex curve is a concave one. A knee is where that is higher above the diagonal
    than on both sides, if it then comes down by more than one step of x before it rises again.
    """
    n = len(values)
    turned = [(values[-1] - v) / (values[-1] - values[0]) for v in reversed(values)]
    above = [turned[i] - i / (n - 1) for i in range(n)]
    knees = []
    for top in range(n - 1):
        if top > 0 and above[top - 1] > above[top]:
            continue
        low = top
        while low + 1 < n and above[low + 1] < above[low]:
            low += 1
        if above[low] < above[top] - 1 / (n - 1):
            knees.append(top)
    return values[n - 1 - max(knees, key=lambda top: above[top])] if knees else None

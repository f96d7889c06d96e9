"""Slow, obvious versions of the gate's arithmetic: loops over rows, entries and candidates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def row_stats(
    kept: Mapping[int, float], tail: float, label: int, own: Mapping[int, float], vocab_size: int
) -> dict[str, float]:
    """One row of one candidate, from dense probabilities.

    Args:
        kept: probability by token.
        tail: probability outside them.
        label: the right token.
        own: the learning model's probability of every token of the vocabulary.
        vocab_size: number of tokens.
    """
    dense = {
        token: kept.get(token, tail / max(vocab_size - len(kept), 1)) for token in range(vocab_size)
    }
    classes = [*kept.values(), tail]
    ordered = [*sorted(kept.values(), reverse=True), 0.0, 0.0]
    own_tail = 1 - sum(own[token] for token in kept)
    least = 1e-6
    return {
        "label_logprob": math.log(max(dense[label], least)),
        "entropy": -sum(p * math.log(p) for p in classes if p > 0),
        "margin": ordered[0] - ordered[1],
        "kept_mass": sum(kept.values()),
        "cross_entropy_to_student": -sum(
            p * math.log(max(own[token], least)) for token, p in kept.items()
        )
        - tail * math.log(max(own_tail, least)),
    }


def dynamic_selection(gate: Sequence[float], threshold: float) -> list[float]:
    """One unit's weights."""
    kept = [n for n, g in enumerate(gate) if g > threshold]
    if not kept:
        kept = [max(range(len(gate)), key=lambda n: gate[n])]
    total = sum(gate[n] for n in kept)
    return [gate[n] / total if n in kept else 0.0 for n in range(len(gate))]


def feedback_loss(weights: Sequence[Sequence[float]]) -> float:
    """Fusion-X, Eq. 13."""
    importance = [sum(column) for column in zip(*weights, strict=True)]
    mean = sum(importance) / len(importance)
    return sum((x - mean) ** 2 for x in importance) / len(importance) / mean**2


def mixture_nats(
    gate: Sequence[Sequence[float]],
    usable: Sequence[Sequence[bool]],
    label_logprob: Sequence[Sequence[float]],
) -> float:
    """Mean over rows of ``-log sum_n w_n p_n(label)``, w being g over who is usable."""
    total = 0.0
    for g, use, logprob in zip(gate, usable, label_logprob, strict=True):
        mass = sum(w for w, u in zip(g, use, strict=True) if u)
        total -= math.log(
            sum(w / mass * math.exp(p) for w, u, p in zip(g, use, logprob, strict=True) if u)
        )
    return total / len(gate)


def neighbour_accuracy(
    states: Sequence[Sequence[float]],
    known: Sequence[bool],
    logprob: Sequence[Sequence[float]],
    neighbours: int,
) -> list[list[tuple[float, float]]]:
    """Per sample and candidate, over its nearest known samples."""
    width, count = len(states[0]), len(states)
    mean = [sum(s[d] for s in states) / count for d in range(width)]
    centred = [[x - m for x, m in zip(s, mean, strict=True)] for s in states]

    def cosine(a: Sequence[float], b: Sequence[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    result = []
    for i in range(count):
        others = [j for j in range(count) if known[j] and j != i]
        others.sort(key=lambda j: -cosine(centred[i], centred[j]))
        near = others[:neighbours]
        row = []
        for c in range(len(logprob[0])):
            values = [logprob[j][c] for j in near]
            log_mean = math.log(sum(math.exp(v) for v in values) / len(values))
            row.append((sum(values) / len(values), log_mean))
        result.append(row)
    return result

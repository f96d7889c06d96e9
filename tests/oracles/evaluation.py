"""Measures of an evaluation, one question and one bin after the other."""

from __future__ import annotations

from collections.abc import Sequence

from fedfuse.evaluation.calibration import BINS


def calibration_error(shares: Sequence[Sequence[float]], correct: Sequence[float]) -> float:
    """Expected calibration error: over bins, the share of questions times how far they are off."""
    total = 0.0
    for number in range(BINS):
        low, high = number / BINS, (number + 1) / BINS
        inside = [i for i, row in enumerate(shares) if low < max(row) <= high]
        if inside:
            accuracy = sum(correct[i] for i in inside) / len(inside)
            confidence = sum(max(shares[i]) for i in inside) / len(inside)
            total += len(inside) / len(shares) * abs(accuracy - confidence)
    return total


def brier(shares: Sequence[Sequence[float]], right: Sequence[int]) -> float:
    """Mean squared distance of shares from the right answer."""
    each = [
        sum((share - (option == answer)) ** 2 for option, share in enumerate(row))
        for row, answer in zip(shares, right, strict=True)
    ]
    return sum(each) / len(each)

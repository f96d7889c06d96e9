"""The learning rate of each rule, on seeds that are not reported: ``... transfer.tune``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from experiments import harness
from experiments.transfer.trial import METHODS, run_trial
from experiments.transfer.world import PAIRS

RATES = Path(__file__).with_name("rates.json")
CHOICES = (1e-3, 3e-3, 8e-3, 2e-2)


def summarize(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By pair and rule, the learning rate of the smallest mean excess."""
    by = harness.grouped(rows, "pair", "method", "rate")
    return {
        pair: {
            m: min(CHOICES, key=lambda r: harness.mean_of(by[pair, m, r], "after")) for m in METHODS
        }
        for pair in PAIRS
    }


@harness.experiment("rates.json")
def main(seeds: harness.Seeds = "100,101", parallel: harness.Parallel = 1) -> harness.Study:
    """Teach with every learning rate; write rates.json beside this file."""
    return harness.Study(
        cells={
            (seed, pair, method, str(rate)): partial(run_trial, pair, method, rate, seed)
            for seed in harness.numbers(seeds)
            for pair in PAIRS
            for method in METHODS
            for rate in CHOICES
        },
        folder="transfer-rates",
        shared=1,
        parallel=parallel,
        summarize=summarize,
    )

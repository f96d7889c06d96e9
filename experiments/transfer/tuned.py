"""A study in which each method has the learning rate that serves it best on other seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from experiments import harness
from fedfuse.errors import check

# Learning rate by pair and method.
Rates = dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """Trials of every pair and method, first with every learning rate, then with the best one."""

    # Runs a pair, method, learning rate and seed; a row has these, and "after": the loss at the end
    trial: Callable[[str, str, float, int], harness.Rows]
    pairs: Sequence[str]
    methods: Sequence[str]
    rates: Sequence[float]  # to choose from
    tuning_seeds: Sequence[int]
    seeds: Sequence[int]  # that are reported; others than those
    folder: str  # of finished cells
    summarize: Callable[[list[Any]], Mapping[str, Any]]
    parallel: int = 1  # seeds and pairs at a time

    def run(self, output: Path) -> dict[str, Any]:
        """Run what is not finished; returns the study's part of the result file.

        Raises:
            FedfuseError: for a seed that would be tuned on and reported.
        """
        both = sorted({*self.seeds} & {*self.tuning_seeds})
        check("tuning seeds", both, "none that is reported", not both)
        every = dict.fromkeys(self.pairs, dict.fromkeys(self.methods, tuple(self.rates)))
        tuning = self._study(every, self.tuning_seeds, best_rates).run(output)["summary"]
        chosen = {
            pair: {method: (rate,) for method, rate in rates.items()}
            for pair, rates in tuning.items()
        }
        found = self._study(chosen, self.seeds, self.summarize).run(output)
        return {"tuning_seeds": list(self.tuning_seeds), "rates": tuning, **found}

    def _study(
        self,
        rates: Mapping[str, Mapping[str, Sequence[float]]],
        seeds: Sequence[int],
        summarize: Callable[[list[Any]], Mapping[str, Any]],
    ) -> harness.Study:
        return harness.Study(
            cells={
                (seed, pair, method, str(rate)): partial(self.trial, pair, method, rate, seed)
                for seed in seeds
                for pair in self.pairs
                for method in self.methods
                for rate in rates[pair][method]
            },
            folder=self.folder,
            summarize=summarize,
            parallel=self.parallel,
            shared=2,  # a pair's teacher
        )


def best_rates(rows: list[dict[str, Any]]) -> Rates:
    """By pair and method, the learning rate of the smallest mean loss at the end."""
    found: Rates = {}
    for (pair, method), tried in harness.grouped(rows, "pair", "method").items():
        by_rate = harness.grouped(tried, "rate")
        best = min(by_rate, key=lambda rate: harness.mean_of(by_rate[rate], "after", 6))
        found.setdefault(pair, {})[method] = best
    return found

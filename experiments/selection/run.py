"""Which rule serves the server best: ``python -m experiments.selection.run``.

No federation runs here: clients are trained once per seed and scenario and kept on disk, then every
rule has the same teachers and the same budget of distillation, and the server is scored. What
is finished is kept in the output folder, so a run that was stopped goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from experiments import harness
from experiments.selection.draw import TABLES, draw
from experiments.selection.material import prepare
from experiments.selection.scenarios import SCENARIOS
from experiments.selection.summary import summarize
from experiments.selection.trial import Trial
from experiments.selection.variants import ABLATED, ABLATIONS, MAIN, MORE, MORE_ON, VARIANTS
from fedfuse.builtin.models import cache_root
from fedfuse.evaluation.interference import paired_noise

Unit = tuple[int, str, str]


@dataclass(frozen=True, kw_only=True)
class SelectionStudy(harness.Study):
    """Each trial measures cells, and says what was chosen in each round."""

    def results(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Summary, cells and choices of all trials."""
        cells, choices = ([x for row in rows for x in row[part]] for part in ("cells", "choices"))
        return {
            "wire_bytes": {},  # nothing is sent
            "summary": summarize(cells, choices),
            "cells": cells,
            "choices": choices,
        }


def plan(seeds: list[int]) -> list[Unit]:
    """Seed, scenario and variant of every trial."""
    parts = ((MAIN, SCENARIOS), (MORE, MORE_ON), (ABLATIONS, ABLATED))
    return [
        (seed, name, variant)
        for number, seed in enumerate(seeds)
        for name, scenario in SCENARIOS.items()
        if number < scenario.seeds
        for variants, where in parts
        if name in where
        for variant in variants
    ]


@lru_cache(maxsize=1)
def prepared(material: Path | None, seed: int, scenario: str) -> Trial:
    """Teachers and server of a seed and scenario, the same for all variants."""
    torch.set_num_threads(1)
    return Trial(prepare(seed, SCENARIOS[scenario], cache_root() / "selection", material))


def measure(material: Path | None, seed: int, scenario: str, variant: str) -> list[dict[str, Any]]:
    """One cell per domain, losses in nats per byte of the test set; one choice per round."""
    trial = prepared(material, seed, scenario)
    outcome = trial.run(VARIANTS[variant])
    where = {"seed": seed, "scenario": scenario, "variant": variant}
    cells = []
    for domain in trial.material.splits.domains:
        here = trial.domains == domain
        before, after = trial.before[here], outcome.nats[here]
        cells.append(
            {
                **where,
                "domain": domain,
                "before": round(float(before.mean()), 5),
                "after": round(float(after.mean()), 5),
                "noise": round(paired_noise(before, after), 5),
                "rolled_back": outcome.rolled_back,
                "rule_seconds": round(outcome.rule_seconds, 2),
                "learn_seconds": round(outcome.learn_seconds, 2),
            }
        )
    choices = [
        {**where, "round": number, **choice}
        for number, choice in enumerate(outcome.choices, start=1)
    ]
    return [{"cells": cells, "choices": choices}]


@harness.experiment("results.json", "selection.md", TABLES, draw)
def main(
    material: Annotated[
        Path | None, typer.Option(help="Folder with models and datasets, for scenario trec.")
    ] = None,
    seeds: harness.Seeds = "0,1,2,3,4",
    scenarios: Annotated[str, typer.Option(help="Joined by commas.")] = ",".join(SCENARIOS),
    variants: Annotated[str, typer.Option(help="Joined by commas.")] = ",".join(VARIANTS),
    parallel: harness.Parallel = 1,
) -> harness.Study:
    """Try every variant on every scenario and seed; write the results and draw them."""
    return SelectionStudy(
        cells={
            (seed, scenario, variant): partial(measure, material, seed, scenario, variant)
            for seed, scenario, variant in plan(harness.numbers(seeds))
            if scenario in scenarios.split(",") and variant in variants.split(",")
        },
        folder="selection",
        summarize=lambda rows: {},
        parallel=parallel,
        shared=2,
    )

"""Which selector serves the server best: ``python -m experiments.selection.run``.

No federation runs here: clients are trained once per seed and scenario and kept on disk, then every
selector has the same teachers and the same budget of distillation, and the server is scored.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import torch
import typer

from experiments.selection.material import SCENARIOS, prepare
from experiments.selection.trial import VARIANTS, Trial
from fedfuse.evaluation.interference import Cell, measure_interference, paired_noise
from fedfuse.models.builtin import cache_root
from fedfuse.report.writing import commit, versions

HERE = Path(__file__).parent


def main(
    seeds: Annotated[str, typer.Option(help="Seeds, joined by commas.")] = "0,1,2,3,4",
    scenarios: Annotated[str, typer.Option(help="Joined by commas.")] = ",".join(SCENARIOS),
    variants: Annotated[str, typer.Option(help="Joined by commas.")] = ",".join(VARIANTS),
    output: Annotated[Path, typer.Option(help="Where results are written.")] = HERE
    / "results.json",
) -> None:
    """Try every variant on every scenario and seed; write the results."""
    torch.set_num_threads(1)
    started = time.monotonic()
    cells: list[dict[str, Any]] = []
    for seed in map(int, seeds.split(",")):
        for scenario in scenarios.split(","):
            material = prepare(seed, SCENARIOS[scenario], cache_root() / "selection")
            trial = Trial(material)
            for variant in variants.split(","):
                found = measure(trial, variant)
                cells += [{"seed": seed, "scenario": scenario, **cell} for cell in found]
                loss = mean(cell["after"] for cell in found)
                print(f"seed {seed}, {scenario}, {variant}: {loss:.4f}", flush=True)
    frame = {
        "command": f"python -m experiments.selection.run --seeds {seeds}"
        f" --scenarios {scenarios} --variants {variants}",
        "seeds": [int(seed) for seed in seeds.split(",")],
        "commit": commit(),
        "versions": versions(),
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "wire_bytes": {},  # nothing is sent
        "summary": summarize(cells),
        "cells": cells,
    }
    output.write_text(json.dumps(frame, indent=1) + "\n")
    print(json.dumps(frame["summary"], indent=1))


def measure(trial: Trial, variant: str) -> list[dict[str, Any]]:
    """One cell per domain; losses in nats per byte, on the test set."""
    before, outcome = trial.before(), trial.run(VARIANTS[variant])
    cells = []
    for domain in trial.material.splits.domains:
        here = trial.domains == domain
        cells.append(
            {
                "variant": variant,
                "domain": domain,
                "before": round(float(before[here].mean()), 5),
                "after": round(float(outcome.nats[here].mean()), 5),
                "noise": round(paired_noise(before[here], outcome.nats[here]), 5),
                "right": round(outcome.right, 4),
                "importance": outcome.importance,
                "select_seconds": round(outcome.select_seconds, 2),
                "learn_seconds": round(outcome.learn_seconds, 2),
            }
        )
    return cells


def summarize(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Per scenario and variant: mean loss, interference, and the share of the way to the oracle.

    ``share_of_gap_mince_to_oracle`` is of mean losses over seeds and domains.
    """
    summary: dict[str, Any] = {
        "server_loss": {},
        "interference_rate": {},
        "interference_rate_interval": {},
        "interference_depth": {},
        "share_of_gap_mince_to_oracle": {},
    }
    for scenario in dict.fromkeys(cell["scenario"] for cell in cells):
        losses: dict[str, float] = {}
        for variant in dict.fromkeys(cell["variant"] for cell in cells):
            mine = [c for c in cells if (c["scenario"], c["variant"]) == (scenario, variant)]
            losses[variant] = mean(c["after"] for c in mine)
            harm = measure_interference(
                [
                    Cell(c["seed"], "server", c["domain"], c["before"], c["after"], c["noise"])
                    for c in mine
                ]
            )
            for name, value in (
                ("server_loss", round(losses[variant], 4)),
                ("interference_rate", round(harm.rate, 4)),
                ("interference_rate_interval", [round(end, 4) for end in harm.rate_interval]),
                ("interference_depth", round(harm.depth, 5)),
            ):
                summary[name].setdefault(scenario, {})[variant] = value
        if {"min-ce", "oracle"} <= losses.keys():
            gap = losses["min-ce"] - losses["oracle"]
            summary["share_of_gap_mince_to_oracle"][scenario] = {
                variant: round((losses["min-ce"] - loss) / gap, 4) if abs(gap) > 1e-9 else None
                for variant, loss in losses.items()
            }
    return summary


if __name__ == "__main__":
    typer.run(main)

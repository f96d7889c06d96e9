"""Which selector serves the server best: ``python -m experiments.selection.run``.

No federation runs here: clients are trained once per seed and scenario and kept on disk, then every
selector has the same teachers and the same budget of distillation, and the server is scored. What
is finished is kept in the output folder, so a run that was stopped goes on.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import time
from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import torch
import typer

from experiments.frame import put_table
from experiments.selection.draw import draw
from experiments.selection.material import prepare
from experiments.selection.scenarios import SCENARIOS
from experiments.selection.summary import summarize
from experiments.selection.tables import TABLES
from experiments.selection.trial import Trial
from experiments.selection.variants import ABLATED, ABLATIONS, MAIN, MORE, MORE_ON, VARIANTS
from fedfuse.builtin.models import cache_root
from fedfuse.evaluation.interference import paired_noise
from fedfuse.tracking.run_writer import commit, versions

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "selection.md"
Unit = tuple[int, str, str]


def main(
    material: Annotated[
        Path | None, typer.Option(help="Folder with models and datasets, for scenario trec.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Joined by commas.")] = "0,1,2,3,4",
    scenarios: Annotated[str, typer.Option(help="Joined by commas.")] = ",".join(SCENARIOS),
    variants: Annotated[str, typer.Option(help="Joined by commas.")] = ",".join(VARIANTS),
    parallel: Annotated[int, typer.Option(help="Processes at a time.")] = 1,
    output: Annotated[Path, typer.Option(help="Where what is finished is kept.")] = Path("runs"),
    results: Annotated[Path, typer.Option(help="Where results are written.")] = HERE
    / "results.json",
) -> None:
    """Try every variant on every scenario and seed; write the results and draw them."""
    started = time.monotonic()
    folder = output / "experiment-selection"
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [int(seed) for seed in split(seeds)]
    units = [
        unit for unit in plan(numbers) if unit[1] in split(scenarios) and unit[2] in split(variants)
    ]
    work: dict[tuple[int, str], list[str]] = {}
    for seed, scenario, variant in units:
        if not path_of(folder, (seed, scenario, variant)).exists():
            work.setdefault((seed, scenario), []).append(variant)
    tasks = [(folder, material, *where, tried) for where, tried in work.items()]
    with multiprocessing.get_context("spawn").Pool(parallel, maxtasksperchild=1) as pool:
        pool.starmap(try_variants, tasks, chunksize=1)
    found = [json.loads(path_of(folder, unit).read_text()) for unit in units]
    cells = [cell for one in found for cell in one["cells"]]
    choices = [choice for one in found for choice in one["choices"]]
    usage = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    frame = {
        "command": "python -m experiments.selection.run --material MATERIAL"
        f" --seeds {seeds} --scenarios {scenarios} --variants {variants}",
        "seeds": numbers,
        "commit": commit(),
        # A run that goes on takes over what earlier ones finished, so the code may have changed.
        "trials_by_commit": dict(Counter(one["commit"] for one in found)),
        "versions": versions(),
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_mb": round(max(one.ru_maxrss for one in usage) / 1024),
        "wire_bytes": {},  # nothing is sent
        "summary": summarize(cells, choices),
        "cells": cells,
        "choices": choices,
    }
    results.write_text(json.dumps(frame, indent=1) + "\n")
    if results.parent == HERE:
        for name, table in TABLES.items():
            put_table(DOCUMENT, table(frame["summary"]), name)
        draw(frame, DOCUMENT.parent / "selection")
    print(json.dumps(frame["summary"], indent=1))


def plan(seeds: list[int]) -> list[Unit]:
    """Which variant is tried on which scenario and seed."""
    units: list[Unit] = []
    for seed in seeds:
        for scenario in SCENARIOS:
            tried = [*MAIN]
            if scenario in MORE_ON:
                tried += MORE
            if scenario in ABLATED:
                tried += ABLATIONS
            units += [(seed, scenario, variant) for variant in tried]
    return units


def split(names: str) -> list[str]:
    """What is joined by commas."""
    return [name for name in names.split(",") if name]


def path_of(folder: Path, unit: Unit) -> Path:
    """Where one trial's result is kept."""
    seed, scenario, variant = unit
    return folder / f"{seed}-{scenario}-{variant}.json"


def try_variants(
    folder: Path, material: Path | None, seed: int, scenario: str, variants: list[str]
) -> None:
    """Some selectors on one seed and scenario, which are made ready once."""
    torch.set_num_threads(1)
    trial = Trial(prepare(seed, SCENARIOS[scenario], cache_root() / "selection", material))
    for variant in variants:
        found = measure(trial, seed, variant)
        path = path_of(folder, (seed, scenario, variant))
        scratch = path.with_suffix(".new")
        scratch.write_text(json.dumps(found) + "\n")
        scratch.replace(path)
        loss = mean(cell["after"] for cell in found["cells"])
        print(f"seed {seed}, {scenario}, {variant}: {loss:.4f} nats/byte", flush=True)


def measure(trial: Trial, seed: int, variant: str) -> dict[str, Any]:
    """One cell per domain, losses in nats per byte of the test set; one choice per round."""
    outcome = trial.run(VARIANTS[variant])
    where = {"seed": seed, "scenario": trial.material.scenario.name, "variant": variant}
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
                "select_seconds": round(outcome.select_seconds, 2),
                "learn_seconds": round(outcome.learn_seconds, 2),
            }
        )
    choices = [
        {
            **where,
            "round": number,
            "right": choice.right,
            "signal": choice.signal,
            "shares": choice.shares,
        }
        for number, choice in enumerate(outcome.choices, start=1)
    ]
    return {"commit": commit(), "cells": cells, "choices": choices}


if __name__ == "__main__":
    typer.run(main)

"""Runs by seeded schedules of failures: ``python -m experiments.faults.chaos``."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import typer

from experiments import harness
from experiments.faults.fleet import Schedule, draw
from experiments.faults.run import DEADLINE, SMALL, lapses, run_among
from experiments.faults.tables import publish, summarize
from fedfuse.builtin.models import ensure
from fedfuse.config.run_config import flatten, parse
from fedfuse.tracking.run import read_run

STRATEGIES = ("fedmkt", "fedfuse")
CLIENTS = 4


def one(seed: int, output: Path) -> dict[str, Any]:
    """What one schedule was, and what came of it."""
    rounds = int(SMALL["rounds"])
    schedule, strategy = draw(seed, CLIENTS, rounds), STRATEGIES[seed % len(STRATEGIES)]
    given = {"seed": seed, "strategy": strategy, "name": f"chaos-{seed}", "output": str(output)}
    config = flatten(parse({**SMALL, **given, "timeout": DEADLINE, "min-clients": 1}))
    with patch("strategies.messenger.POLL_SECONDS", DEADLINE / 4):
        fleets = run_among(schedule, config, CLIENTS)
    run = read_run(output / f"chaos-{seed}")
    return {
        "seed": seed,
        "strategy": strategy,
        "faults": dict(sorted(scheduled(schedule).items())),
        "messages": sum(line.sent_bytes > 0 for line in run.messages),
        "failed": len(run.failures),
        "events": dict(sorted(Counter(event.event for event in run.events).items())),
        "lapses": lapses(run.folder, fleets),
    }


def scheduled(schedule: Schedule) -> Counter[str]:
    """How often what was to go wrong."""
    counts = Counter(schedule.faults.values())
    counts["away"] = sum(len(rounds) for rounds in schedule.away.values())
    counts["killed"] = len(schedule.kills)
    return counts


def in_scratch_folder(seed: int) -> list[dict[str, Any]]:
    """One schedule, whose run folder is not kept."""
    with tempfile.TemporaryDirectory() as folder:
        return [one(seed, Path(folder))]


@harness.experiment("chaos.json", draw=publish)
def main(
    schedules: Annotated[int, typer.Option(help="Number of schedules.")] = 50,
) -> harness.Study:
    """Run the schedules 0, 1, ... and write what came of them."""
    logging.disable(logging.ERROR)
    ensure(["builtin:server", "builtin:gpt2", "builtin:llama", "builtin:opt", "builtin:gpt-neox"])
    return harness.Study(
        cells={("chaos", seed): partial(in_scratch_folder, seed) for seed in range(schedules)},
        folder="faults",
        summarize=lambda cells: summarize(cells, [Counter(cell["faults"]) for cell in cells]),
    )

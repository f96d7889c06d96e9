"""Runs by seeded schedules of failures: ``python -m experiments.faults.chaos``."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import typer

from experiments.faults.fleet import Schedule, draw
from experiments.faults.run import DEADLINE, SMALL, events, lapses, run_among
from experiments.frame import write_results
from fedfuse.builtin.models import ensure
from fedfuse.config.run_config import flatten, parse
from fedfuse.tracking.run import read_run

STRATEGIES = ("fedmkt", "fedfuse")
CLIENTS = 4
RESULTS = Path(__file__).with_name("chaos.json")


def one(seed: int, output: Path) -> dict[str, object]:
    """What one schedule was, and what came of it."""
    rounds = int(SMALL["rounds"])
    schedule, strategy = draw(seed, CLIENTS, rounds), STRATEGIES[seed % len(STRATEGIES)]
    given = {
        "seed": seed,
        "strategy": strategy,
        "name": f"chaos-{seed}",
        "output": str(output),
        "timeout": DEADLINE,
        "min-clients": 1,
    }
    config = flatten(parse({**SMALL, **given}))
    folder = output / f"chaos-{seed}"
    with patch("strategies.messenger.POLL_SECONDS", DEADLINE / 4):
        fleets = run_among(schedule, config, CLIENTS)
    message_log = read_run(folder).messages
    return {
        "seed": seed,
        "strategy": strategy,
        "faults": dict(sorted(scheduled(schedule).items())),
        "messages": sum(line.sent_bytes > 0 for line in message_log),
        "failed": sum(line.error is not None for line in message_log),
        "events": dict(sorted(events(folder).items())),
        "lapses": lapses(folder, fleets),
    }


def scheduled(schedule: Schedule) -> Counter[str]:
    """How often what was to go wrong."""
    counts = Counter(schedule.faults.values())
    counts["away"] = sum(len(rounds) for rounds in schedule.away.values())
    counts["killed"] = len(schedule.kills)
    return counts


def main(
    schedules: Annotated[int, typer.Option(help="Their number.")] = 50,
    results: Annotated[Path, typer.Option(help="File to write.")] = RESULTS,
) -> None:
    """Run the schedules 0, 1, ... and write what came of them."""
    logging.disable(logging.ERROR)
    ensure(["builtin:server", "builtin:gpt2", "builtin:llama", "builtin:opt", "builtin:gpt-neox"])
    started, cells = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(schedules):
            cells.append(one(seed, Path(folder)))
            print(json.dumps(cells[-1]), flush=True)
    total: Counter[str] = Counter()
    for cell in cells:
        total.update(cell["faults"])  # type: ignore[arg-type]
    summary = {
        "schedules": schedules,
        "without lapses": sum(not cell["lapses"] for cell in cells),
        "faults": dict(sorted(total.items())),
    }
    write_results(
        results,
        command=f"python -m experiments.faults.chaos --schedules {schedules}",
        started=started,
        summary=summary,
        cells=cells,
    )


if __name__ == "__main__":
    typer.run(main)

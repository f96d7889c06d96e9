"""Time and memory of 4 to 100 clients on one machine: ``python -m experiments.scale.run``.

Each number of clients is simulated with Flower's engine and Ray, and must end with every client in
every phase of every round. The server is then told the same once more, alone in a process of its
own, to see what memory it needs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer

from benchmarks.memory import Watch
from experiments import harness
from experiments.federations import simulate, traffic
from experiments.scale.draw import draw, table
from experiments.scale.server import ROUNDS
from fedfuse.builtin.models import build
from fedfuse.flower.messages import DISTILL, EVALUATE, LOCAL
from fedfuse.tracking.run import RunFolder

SEED, MB = 0, 1e6
_MARK = "FEDFUSE_SCALE_RUN"


@dataclass(frozen=True, kw_only=True)
class ScaleStudy(harness.Study):
    """Notes the traffic of each simulation apart from its cell."""

    def results(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Traffic, summary and cells."""
        sent = {f"{row['clients']}-{SEED}": row.pop("wire_bytes") for row in rows}
        return {"wire_bytes": sent, **super().results(rows)}


def measure(folder: Path, clients: int) -> list[dict[str, Any]]:
    """One simulation in processes of its own, and its server alone."""
    home = folder / f"{clients}-clients"
    shutil.rmtree(home, ignore_errors=True)  # its time is measured anew
    arguments = ["--clients", str(clients), "--config", str(Path(__file__).with_name("scale.toml"))]
    arguments += ["--set", f"seed={SEED}", "--set", f"min-clients={clients}"]
    busy, began = round(os.getloadavg()[0], 2), time.monotonic()
    with Watch(_MARK, folder) as watch:
        run = simulate(home, arguments, **{_MARK: str(folder)})
    seconds = time.monotonic() - began
    check_complete(run, clients)
    rounds = json.loads((run.folder / ROUNDS).read_text())
    cell = {
        "clients": clients,
        "seconds": round(seconds, 1),
        "load_average_before": busy,
        "seconds_per_round": rounds,
        "seconds_per_client_and_round": round(rounds[-1] / clients, 3),
        "client_state_mb": client_state(run.folder),
        "actor_mb": round(watch.largest["clients"] / MB),
        "server_mb": round(watch.largest["server"] / MB),
        "simulation_mb": round(watch.peak["all"] / MB),
        "wire_bytes": traffic(run),
    }
    for how, more in {"streamed": [], "held": ["--held"]}.items():
        cell[f"server_extra_mb_{how}"] = alone(run.folder, folder, more)
    return [cell]


def client_state(folder: Path) -> float:
    """Megabytes that Flower keeps per client: its adapter, and two moments of it for two phases."""
    adapters = list(folder.glob("clients/*/adapter/adapter_model.safetensors"))
    return round(5 * mean(file.stat().st_size for file in adapters) / MB, 2)


def check_complete(run: RunFolder, clients: int) -> None:
    """End the program unless every client answered every message of every round."""
    everybody = {str(number) for number in range(clients)}
    for where in product(range(1, run.rounds + 1), (LOCAL, DISTILL, EVALUATE)):
        good = [x for x in run.messages if (x.round, x.phase) == where and x.error is None]
        if lost := everybody.symmetric_difference(line.client for line in good):
            number, phase = where
            raise SystemExit(f"{run.folder}: {phase} of round {number} lacks {sorted(lost)}")


def alone(folder: Path, output: Path, arguments: list[str]) -> float:
    """Megabytes that the server takes to learn what the clients of a run say."""
    command = [sys.executable, "-m", "experiments.scale.server", str(folder)]
    command += ["--output", str(output / "alone"), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["extra_mb"])


def summarize(cells: list[dict[str, Any]]) -> dict[str, float]:
    """What the most clients take, and what each client more than the fewest costs."""
    few, many = cells[0], cells[-1]
    more = many["clients"] - few["clients"]
    summary = {f"{key}_{many['clients']}": value for key, value in many.items() if key != "clients"}
    for key in ("server_extra_mb_streamed", "server_extra_mb_held", "server_mb", "simulation_mb"):
        summary[f"{key}_per_client"] = round((many[key] - few[key]) / more, 3) if more else 0.0
    return summary


@harness.experiment("results.json", "scale.md", {"table": table}, draw, shown="cells")
def main(
    clients: Annotated[str, typer.Option(help="Numbers of clients, by commas.")] = "4,16,64,100",
    output: harness.Output = harness.RUNS,
) -> harness.Study:
    """Simulate, measure; write results.json beside this file, and docs/scale.*."""
    for model in ("gpt2", "llama", "opt", "gpt-neox", "server"):
        build(f"builtin:{model}")
    folder = output.resolve() / "experiment-scale"
    return ScaleStudy(
        cells={
            (number, "clients"): partial(measure, folder, number)
            for number in harness.numbers(clients)
        },
        folder="scale",
        summarize=summarize,
    )

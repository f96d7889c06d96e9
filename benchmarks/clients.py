"""Many clients of which few take part in a round: ``python -m benchmarks.clients``.

Simulations with Ray on this machine, of the built-in models, five rounds of 20 clients each, out of
20 to 1,000. What is looked at is what a client costs that has no turn: memory of the server's
process, in which Flower's engine runs too, of all processes, and time until the first round.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import harness
from benchmarks.memory import Watch
from fedfuse.builtin.models import ensure

_MARK = "FEDFUSE_CLIENTS_RUN"
PER_ROUND, ROUNDS = 20, 5
KEYS: dict[str, Any] = {
    "name": "run",
    "rounds": ROUNDS,
    "clients-per-round": PER_ROUND,
    "min-clients": PER_ROUND,
    "baselines": "false",
    "data.partition": "iid",
    "data.private": 4000,
    "data.test": 2,
    "data.questions": 10,
    "local.steps": 4,
    "local.batch-size": 8,
    "server-distill.steps": 4,
    "server-distill.batch-size": 8,
    "client-distill.steps": 4,
    "client-distill.batch-size": 8,
}
QUICK: dict[str, Any] = {"clients-per-round": 2, "min-clients": 2, "rounds": 2}


def measure(clients: int, keys: dict[str, Any]) -> dict[str, Any]:
    """A simulation: peak bytes by kind of process, seconds, and seconds before the first round."""
    with tempfile.TemporaryDirectory() as folder:
        given = {**keys, "output": folder}
        command = [sys.executable, "-m", "fedfuse.cli", "simulate", "--clients", str(clients)]
        command += [word for k, v in given.items() for word in ("--set", f"{k}={v}")]
        environment = os.environ | {_MARK: folder}
        started = time.monotonic()
        with Watch(_MARK, Path(folder), seconds=0.5) as watch:
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - started
        return {
            "clients": clients,
            "seconds": round(seconds, 1),
            "registration_seconds": _registration(Path(folder) / "run"),
            "server_bytes": watch.largest["server"],
            "client_bytes": watch.largest["clients"],
            "all_bytes": watch.peak["all"],
        }


def _registration(folder: Path) -> float:
    """Seconds until the last client had registered."""
    lines = [json.loads(line) for line in (folder / "messages.jsonl").read_text().splitlines()]
    return max(line["seconds"] for line in lines if line["phase"] == "query.register")


def draw(measured: list[dict[str, Any]], file: Path) -> None:
    """Memory and time against the number of clients."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    memory, seconds = figure.subplots(1, 2)
    number = [each["clients"] for each in measured]
    for key, label in {"all_bytes": "all processes", "server_bytes": "server and engine"}.items():
        memory.plot(number, [each[key] / 1e6 for each in measured], marker="o", label=label)
    for key, label in {"seconds": "whole run", "registration_seconds": "registration"}.items():
        seconds.plot(number, [each[key] for each in measured], marker="o", label=label)
    memory.set(title="Memory at the peak", xlabel="clients", ylabel="MB", ylim=0)
    seconds.set(title="Time", xlabel="clients", ylabel="seconds", ylim=0)
    for axes in (memory, seconds):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None})


@harness.benchmark
def main(
    file: harness.File = harness.ROOT / "benchmarks" / "results" / "clients.json",
    clients: Annotated[
        str, typer.Option(help="Numbers of clients, by commas.")
    ] = "20,100,300,1000",
    picture: Annotated[Path | None, typer.Option(help="SVG file to draw.")] = None,
    quick: harness.Quick = False,
) -> Iterator[harness.Measured]:
    """Simulate, measure, and write the result file after each number of clients."""
    ensure(f"builtin:{model}" for model in ("gpt2", "llama", "opt", "gpt-neox", "server"))
    measured: list[dict[str, Any]] = []
    results: dict[str, Any] = {}
    for number in map(int, clients.split(",")):
        measured.append(measure(number, KEYS | (QUICK if quick else {})))
        first, last = measured[0], measured[-1]
        results |= {
            f"memory_{number}_over_{first['clients']}": last["server_bytes"]
            / first["server_bytes"],
            f"all_memory_{number}_over_{first['clients']}": last["all_bytes"] / first["all_bytes"],
            f"registration_seconds_{number}": last["registration_seconds"],
        }
        yield harness.Measured(results, {"measured": measured})
    if picture:
        draw(measured, picture)

"""Time and memory of 4 to 100 clients on one machine: ``python -m experiments.scale.run``.

Each number of clients is simulated with Flower's engine and Ray, and must end with every client in
every phase of every round. The server is then told the same once more, alone in a process of its
own, to see what memory it needs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer

from benchmarks.memory_watch import Watch
from experiments.frame import put_table, write_results
from experiments.scale.draw import draw, table
from experiments.scale.memory import MB
from experiments.scale.recorded import ROUNDS
from fedfuse.builtin.models import build
from fedfuse.flower.messages import DISTILL, EVALUATE, LOCAL
from fedfuse.tracking.run import RunFolder, read_run

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
SEED = 0
_MARK = "FEDFUSE_SCALE_RUN"


def main(
    clients: Annotated[str, typer.Option(help="Numbers of clients, by commas.")] = "4,16,64,100",
    output: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs"),
) -> None:
    """Simulate, measure; write results.json beside this file, and docs/scale.*."""
    started = time.monotonic()
    output = output.resolve() / "experiment-scale"
    for model in ("gpt2", "llama", "opt", "gpt-neox", "server"):
        build(f"builtin:{model}")
    runs: dict[tuple[str, int], RunFolder] = {}
    cells = []
    for number in map(int, clients.split(",")):
        run, cell = simulate(output, number)
        runs[str(number), SEED] = run
        for how, arguments in {"streamed": [], "held": ["--held"]}.items():
            cell[f"server_extra_mb_{how}"] = alone(run.folder, output, arguments)
        cells.append(cell)
        print(json.dumps(cell), flush=True)
    write_results(
        HERE / "results.json",
        command=f"python -m experiments.scale.run --clients {clients}",
        seeds=[SEED],
        summary=summarize(cells),
        cells=cells,
        runs=runs,
        started=started,
    )
    put_table(DOCS / "scale.md", table(cells))
    draw(cells, DOCS / "scale.svg")


def simulate(output: Path, clients: int) -> tuple[RunFolder, dict[str, Any]]:
    """One simulation, in processes of its own; what it took.

    Raises:
        SystemExit: when it fails, or a client is missing anywhere.
    """
    name = f"{clients}-clients"
    output.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "fedfuse.cli", "simulate", "--clients", str(clients)]
    command += ["--config", str(HERE / "scale.toml"), "--set", f"name={name}"]
    command += ["--set", f"output={output}", "--set", f"seed={SEED}"]
    command += ["--set", f"min-clients={clients}"]
    if (output / name).exists():
        raise SystemExit(f"{output / name} is there already; remove it to measure anew")
    busy, began = round(os.getloadavg()[0], 2), time.monotonic()
    with (output / f"{name}.log").open("w") as log, Watch(_MARK, output) as watch:
        done = subprocess.run(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
            env={**os.environ, _MARK: str(output)},
        )
    seconds = time.monotonic() - began
    if done.returncode:
        raise SystemExit(f"{name} failed; see {output / name}.log")
    run = read_run(output / name)
    check_complete(run, clients)
    rounds = json.loads((run.folder / ROUNDS).read_text())
    return run, {
        "clients": clients,
        "seconds": round(seconds, 1),
        "load_average_before": busy,
        "seconds_per_round": rounds,
        "seconds_per_client_and_round": round(rounds[-1] / clients, 3),
        "client_state_mb": client_state(run.folder),
        "actor_mb": round(watch.largest["clients"] / MB),
        "server_mb": round(watch.largest["server"] / MB),
        "simulation_mb": round(watch.peak["all"] / MB),
    }


def client_state(folder: Path) -> float:
    """Megabytes that Flower keeps per client: its adapter, and two moments of it for two phases."""
    adapters = list(folder.glob("clients/*/adapter/adapter_model.safetensors"))
    return round(5 * mean(file.stat().st_size for file in adapters) / MB, 2)


def check_complete(run: RunFolder, clients: int) -> None:
    """Stop unless every client answered every message of every round.

    Raises:
        SystemExit: naming the phase.
    """
    everybody = {str(number) for number in range(clients)}
    for server_round in range(1, run.rounds + 1):
        for phase in (LOCAL, DISTILL, EVALUATE):
            there = {
                line.client
                for line in run.messages
                if (line.round, line.phase, line.error) == (server_round, phase, None)
            }
            if there != everybody:
                raise SystemExit(
                    f"{run.folder}: {phase} of round {server_round} lacks "
                    f"{sorted(everybody - there)}"
                )


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


if __name__ == "__main__":
    typer.run(main)

"""The quickstart under several strategies: ``python -m experiments.quickstart.strategies``.

The same clients, data, steps and seeds; what differs is who is trusted.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import typer

from experiments.frame import Job, raw_cells, run_jobs, write_results
from fedfuse.evaluation.interference import measure_interference
from fedfuse.report.regressions import cells
from fedfuse.tracking.run import SERVER, RunFolder

HERE = Path(__file__).parent
STRATEGIES = ("fedmkt", "fusion-x", "fedfuse")


def main(
    seeds: Annotated[str, typer.Option(help="Seeds, joined by commas.")] = "0,1,2",
    output: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs"),
    parallel: Annotated[int, typer.Option(help="Runs at a time.")] = 2,
) -> None:
    """Run every strategy on every seed and write strategies.json beside this file."""
    started = time.monotonic()
    numbers = [int(seed) for seed in seeds.split(",")]
    jobs = [
        Job(name, seed, ("--set", "baselines=false", "--set", f"strategy={name}"))
        for seed in numbers
        for name in STRATEGIES
    ]
    runs = run_jobs(jobs, output.resolve() / "experiment-strategies", parallel)
    write_results(
        HERE / "strategies.json",
        command=f"python -m experiments.quickstart.strategies --seeds {seeds}",
        seeds=numbers,
        summary={name: summarize([runs[name, seed] for seed in numbers]) for name in STRATEGIES},
        cells=raw_cells(runs),
        runs=runs,
        started=started,
    )


def summarize(runs: list[RunFolder]) -> dict[str, float]:
    """Final losses, nats per byte above the floor, mean and standard deviation over seeds.

    ``server``; ``clients``, mean over clients and domains; ``own``, each client on its own domain.
    Interference is over all models, domains and seeds, against the untouched models.
    """
    found: dict[str, float] = {}
    per_seed = [excesses(run) for run in runs]
    for key in per_seed[0]:
        values = [one[key] for one in per_seed]
        found[f"{key}_excess"] = round(mean(values), 4)
        found[f"{key}_excess_std"] = round(stdev(values), 4) if len(values) > 1 else 0.0
    harm = measure_interference([cell for run in runs for cell in cells(run)])
    found["interference_rate"] = round(harm.rate, 4)
    found["interference_depth"] = round(harm.depth, 4)
    return found


def excesses(run: RunFolder) -> dict[str, float]:
    """Of the server, of the clients on all domains, and of the clients on their own."""
    of_model = {
        model: {domain: m.excess or 0.0 for domain, m in run.by_domain(model, "federated").items()}
        for model in run.measured
    }
    return {
        "server": mean(of_model[SERVER].values()),
        "clients": mean(mean(of_model[client].values()) for client in run.clients),
        "own": mean(of_model[client][run.own_domain[client]] for client in run.clients),
    }


if __name__ == "__main__":
    typer.run(main)

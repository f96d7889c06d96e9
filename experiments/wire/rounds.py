"""What it costs to say less: ``python -m experiments.wire.rounds``.

The quickstart under FedMKT, whole and over several seeds, with rounds about half or a quarter of
the public samples, and with rows that are not sent again when they moved less than a threshold.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer

from experiments.frame import Job, put_table, raw_cells, run_jobs, write_results
from experiments.quickstart.run import NO_BASELINES, excess, measure
from experiments.wire.tables import rounds
from fedfuse.tracking.run import RunFolder

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "wire.md"
# A learned gate needs all of the public set in every round.
FEDMKT = ("--set", "strategy=fedmkt")
VARIANTS = {
    "everything": (),
    "half of the samples": ("--set", "knowledge.public-share=0.5"),
    "quarter of the samples": ("--set", "knowledge.public-share=0.25"),
    "rows that moved by 0.05": ("--set", "knowledge.freshness=0.05"),
    "rows that moved by 0.2": ("--set", "knowledge.freshness=0.2"),
}


def main(
    seeds: Annotated[str, typer.Option(help="Seeds, joined by commas.")] = "0,1,2",
    output: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs"),
    parallel: Annotated[int, typer.Option(help="Runs at a time.")] = 2,
) -> None:
    """Run all variants and write rounds.json beside this file."""
    started = time.monotonic()
    numbers = [int(seed) for seed in seeds.split(",")]
    jobs = [
        Job(name.replace(" ", "-"), seed, (*NO_BASELINES, *FEDMKT, *arguments))
        for seed in numbers
        for name, arguments in VARIANTS.items()
    ]
    runs = run_jobs(jobs, output.resolve() / "experiment-wire", parallel)
    summary = summarize(runs, numbers)
    write_results(
        HERE / "rounds.json",
        command=f"python -m experiments.wire.rounds --seeds {seeds}",
        seeds=numbers,
        summary=summary,
        cells=raw_cells(runs),
        runs=runs,
        started=started,
    )
    put_table(DOCUMENT, rounds(summary), "rounds")


def summarize(runs: dict[tuple[str, int], RunFolder], seeds: list[int]) -> dict[str, Any]:
    """Per variant, over seeds: what is left of the excess loss, and bytes of knowledge a round."""
    summary: dict[str, Any] = {}
    for name in VARIANTS:
        cells = [of_run(runs[name.replace(" ", "-"), seed]) for seed in seeds]
        summary[name] = {
            f"{key}{suffix}": round(statistic(cell[key] for cell in cells), 4)
            for key in cells[0]
            for suffix, statistic in (("", mean), ("_std", stdev))
            if suffix == "" or len(seeds) > 1
        }
    return summary


def of_run(run: RunFolder) -> dict[str, float]:
    """Excess over the entropy floor (nats a byte) and kilobytes of one round's messages."""
    phases = {
        "kilobytes_up": sum(x.received_bytes for x in run.messages if x.phase == "train.local"),
        "kilobytes_down": sum(x.sent_bytes for x in run.messages if x.phase == "train.distill"),
    }
    clients = [excess(measure(run, client, "federated")) for client in run.clients]
    return {
        "server_excess": excess(measure(run, "server", "federated")),
        "clients_excess": mean(clients),
    } | {name: size / 1000 / run.rounds for name, size in phases.items()}


if __name__ == "__main__":
    typer.run(main)

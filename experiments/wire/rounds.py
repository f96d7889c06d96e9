"""What it costs to say less: ``python -m experiments.wire.rounds``.

The quickstart under FedMKT, whole and over several seeds, with rounds about half or a quarter of
the public samples, and with rows that are not sent again when they moved less than a threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

from experiments import harness
from experiments.federations import Federations, RunKey
from experiments.quickstart.run import NO_BASELINES, excess, measure
from fedfuse.tracking.run import RunFolder

# A learned gate needs all of the public set in every round.
FEDMKT = ("--set", "strategy=fedmkt")
VARIANTS = {
    "everything": (),
    "half of the samples": ("--set", "knowledge.public-share=0.5"),
    "quarter of the samples": ("--set", "knowledge.public-share=0.25"),
    "rows that moved by 0.05": ("--set", "knowledge.delta-threshold=0.05"),
    "rows that moved by 0.2": ("--set", "knowledge.delta-threshold=0.2"),
}


def summarize(runs: dict[RunKey, RunFolder]) -> dict[str, Any]:
    """Per variant, over seeds: what is left of the excess loss, and bytes of knowledge a round."""
    summary: dict[str, Any] = {}
    for name in VARIANTS:
        cells = [of_run(run) for (key, _), run in runs.items() if key == name.replace(" ", "-")]
        summary[name] = {}
        for key in cells[0]:
            summary[name] |= harness.mean_and_std(key, [cell[key] for cell in cells])
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


def table(summary: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: whole federations in which less is said."""
    columns = {
        "told": "{name}",
        "kB up a round": "{kilobytes_up:.0f}",
        "kB down a round": "{kilobytes_down:.0f}",
        "server's excess loss": "{server_excess:.4f} ± {server_excess_std:.4f}",
        "clients' excess loss": "{clients_excess:.4f} ± {clients_excess_std:.4f}",
    }
    return harness.formatted(columns, [{"name": n, **found} for n, found in summary.items()])


@harness.experiment("rounds.json", "wire.md", {"rounds": table})
def main(seeds: harness.Seeds = "0,1,2", parallel: harness.Parallel = 2) -> Federations:
    """Run all variants and write rounds.json beside this file."""
    return Federations(
        cells={
            (name.replace(" ", "-"), seed): (*NO_BASELINES, *FEDMKT, *arguments)
            for seed in harness.numbers(seeds)
            for name, arguments in VARIANTS.items()
        },
        folder="wire",
        summarize=summarize,
        parallel=parallel,
    )

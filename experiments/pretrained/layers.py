"""How many of the last layers get an adapter: ``python -m experiments.pretrained.layers``.

A federation of one round under the ``pretrained`` preset, two clients and a server of
SmolLM2-135M-Instruct on TREC's training file, with adapters on all layers or on the last of them.
What the layers below make of a text is kept; each run has a cache of its own, empty when it begins.
Seeds are others than those that results are reported on.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer

from benchmarks.harness import ROOT
from benchmarks.rounds import MODEL, federate
from experiments import harness
from fedfuse.tracking.run import SERVER

DATA = "trec"
CLIENTS = 2
# ``lora-layers`` of server and clients; 0 for all layers.
LAYERS = (0, 0.5, 0.25, 0.125)
NAMES = {0: "all", 0.5: "last half", 0.25: "last quarter", 0.125: "last eighth"}
KEYS: Mapping[str, Any] = {
    "rounds": 1,
    "baselines": False,
    "data.partition": "iid",
    "data.private": 400,
    "data.public": 150,
    "data.blind": 24,
    "data.holdout": 40,
    "data.test": 100,
    "data.questions": 50,
    "data.max-length": 96,
}


def measure(models: Path, material: Path, seed: int, layers: float) -> list[dict[str, Any]]:
    """A federation's losses (nats per byte), seconds, and bytes of hidden states on disk."""
    keys = {
        **KEYS,
        "seed": seed,
        "data.source": material / "datasets" / DATA / "train.jsonl",
        "server.model": models / MODEL,
        "clients.model": models / MODEL,
        "server.lora-layers": layers,
        "clients.lora-layers": layers,
    }
    run = federate(ROOT, keys, CLIENTS)
    others = [loss for model, loss in run.losses.items() if model != SERVER]
    found = {"server": run.losses[SERVER], "clients": mean(others)}
    found |= {"seconds": round(run.seconds, 1), "states": run.states}
    return [{"seed": seed, "layers": layers, **found}]


def summarize(rows: harness.Rows) -> dict[str, Any]:
    """By ``lora-layers``: means over seeds, against adapters on all layers of the same seed.

    - ``server``, ``clients``: loss, nats per byte; ``_over_all``: over that of the same seed with
      all layers, less 1, with ``_std`` over seeds.
    - ``time_over_all``: seconds over those with all layers.
    - ``megabytes``: of hidden states on disk.
    """
    by = {(row["seed"], row["layers"]): row for row in rows}
    found: dict[str, Any] = {}
    for layers in LAYERS:
        mine = [row for row in rows if row["layers"] == layers]
        whole = [by[row["seed"], 0] for row in mine]
        of = {"megabytes": round(harness.mean_of(mine, "states") / 1e6, 1)}
        for name in ("server", "clients"):
            more = [one[name] / all_[name] - 1 for one, all_ in zip(mine, whole, strict=True)]
            of |= harness.mean_and_std(name, [row[name] for row in mine])
            of |= harness.mean_and_std(f"{name}_over_all", more)
        ratios = [one["seconds"] / all_["seconds"] for one, all_ in zip(mine, whole, strict=True)]
        found[NAMES[layers]] = of | harness.mean_and_std("time_over_all", ratios)
    return found


def table(summary: Mapping[str, Mapping[str, float]]) -> str:
    """A row for each number of layers."""
    columns = {
        "adapters on": "{name}",
        "time": "{time_over_all:.2f}",
        "states on disk, MB": "{megabytes:.0f}",
        "server's loss": "{server:.3f} ± {server_std:.3f}",
        "against all layers": "{server_over_all:+.0%} ± {server_over_all_std:.0%}",
        "clients' loss": "{clients:.3f} ± {clients_std:.3f}",
        "clients against all layers": "{clients_over_all:+.0%} ± {clients_over_all_std:.0%}",
    }
    return harness.formatted(columns, [{"name": name, **of} for name, of in summary.items()])


@harness.experiment("layers.json", "configuration.md", {"pretrained-layers": table})
def main(
    material: harness.Material,
    models: Annotated[Path, typer.Option(help=f"Folder with the folder {MODEL}.")],
    seeds: harness.Seeds = "100,101,102",
    parallel: harness.Parallel = 2,
) -> harness.Study:
    """Run every number of layers on every seed; write layers.json beside this file."""
    folders = models.resolve(), material.resolve()
    return harness.Study(
        cells={
            (seed, NAMES[layers]): partial(measure, *folders, seed, layers)
            for seed in harness.numbers(seeds)
            for layers in LAYERS
        },
        folder="pretrained-layers",
        summarize=summarize,
        parallel=parallel,
    )

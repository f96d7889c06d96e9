"""The most that anybody could tell the small clients of the real-text scenario:
``python -m experiments.realtext.ceiling --material FOLDER``.

Each learns from the private texts of all clients and the public set, in as many steps as the
federation has for it. No teacher knows more than these labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from experiments import harness
from experiments.realtext.run import RECIPES, SOURCES, build_models
from fedfuse.algorithms.baseline import LabelPhase, train_baseline
from fedfuse.cli.run_config import read_config
from fedfuse.config.run_config import derive_seed, parse
from fedfuse.factory.data import load_splits, shared_samples
from fedfuse.factory.models import load_local_model


def measure(folder: Path, sources: Sequence[str], name: str, seed: int) -> list[dict[str, Any]]:
    """Loss on the test set, nats per byte, mean over both data sets."""
    keys = [f"data.source={'+'.join(sources)}", f"clients.model={folder / name}", f"seed={seed}"]
    config = parse(read_config(Path(__file__).with_name("realtext.toml"), keys))
    splits, shared = load_splits(config.data, seed, 1), shared_samples(config.data, seed)
    length = config.data.max_length
    model = load_local_model("client", str(folder / name), config.clients, shared, length, seed)
    model.reset()
    everything = model.encode([*splits.private[0], *splits.public])
    steps = config.local.steps + config.client_distill.steps
    phase = LabelPhase(
        everything, replace(config.local, steps=steps), derive_seed(config, "ceiling")
    )
    train_baseline(model, [phase], config.rounds, model.encode(splits.holdout))
    loss = mean(score.loss for score in model.score().values())
    return [{"model": name, "seed": seed, "loss": round(loss, 4)}]


def summarize(rows: Sequence[harness.Row]) -> dict[str, float]:
    """Loss by model, nats per byte: mean and standard deviation over seeds."""
    found: dict[str, float] = {}
    for name, mine in harness.grouped(rows, "model").items():
        found |= harness.mean_and_std(name, [row["loss"] for row in mine])
    return found


@harness.experiment("ceiling.json")
def main(
    material: harness.Material,
    seeds: harness.Seeds = "0,1,2",
    output: harness.Output = harness.RUNS,
) -> harness.Study:
    """Train every small client on everything; write ceiling.json beside this file."""
    material, folder = material.resolve(), output.resolve() / "experiment-realtext"
    folder.mkdir(parents=True, exist_ok=True)
    sources = [str(material / "datasets" / name) for name in SOURCES]
    build_models(material, sources, folder)
    return harness.Study(
        cells={
            (seed, name): partial(measure, folder, sources, name, seed)
            for seed in harness.numbers(seeds)
            for name in RECIPES
        },
        folder="realtext-ceiling",
        summarize=summarize,
    )

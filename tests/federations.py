"""Whole federations that take seconds: built-in models of a few steps, few samples, two rounds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.clientapp import ClientApp
from numpy import ndarray

from clients.app import app as client_app
from clients.knowledge import _private
from fedfuse.builtin import models as builtin
from fedfuse.config.run_config import Scalar, flatten, parse
from fedfuse.factory.data import load_splits, shared_samples
from fedfuse.factory.models import load_local_model
from fedfuse.simulation.in_process import run_in_process
from fedfuse.tracking.checkpoints import Checkpoints
from strategies.app import app as server_app

VOCABULARY = {"gpt2": 400, "llama": 300, "opt": 480, "gpt-neox": 330, "server": 440}
FAST: Mapping[str, Scalar] = {
    "preset": "quickstart",
    "strategy": "fedmkt",
    "rounds": 2,
    "labels-first": False,
    "data.private": 24,
    "data.public": 4,
    "data.holdout": 0,
    "data.blind": 0,
    "data.test": 1,
    "data.questions": 3,
    "server.lora-rank": 4,
    "server.device": "cpu",
    "clients.lora-rank": 4,
    "clients.device": "cpu",
    "local.steps": 4,
    "local.batch-size": 4,
    "server-distill.steps": 4,
    "server-distill.batch-size": 4,
    "client-distill.steps": 4,
    "client-distill.batch-size": 4,
    "knowledge.k": 8,
    "fusion.evidence": "open",
}


@pytest.fixture(scope="package")
def tiny_builtin() -> Iterator[dict[str, Path]]:
    """Built-in models that are built in a second; their folders by name, for other processes."""
    small: dict[str, Any] = {"width": 16, "layers": 1, "steps": 5, "samples_per_domain": 60}
    recipes = {
        name: replace(builtin.RECIPES[name], vocab_size=size, **small)
        for name, size in VOCABULARY.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, recipe in recipes.items():
            patch.setitem(builtin.RECIPES, name, recipe)
        yield {name: builtin.build(f"builtin:{name}") for name in recipes}
    for cached in (load_local_model, load_splits, shared_samples, _private):
        cached.cache_clear()


def federate(
    output: Path,
    *,
    clients: int = 4,
    app: ClientApp = client_app,
    report: bool = False,
    **keys: Scalar,
) -> Path:
    """Run a federation in this process; returns its run folder.

    Args:
        output: folder of the run folders.
        clients: their number.
        app: what the clients run.
        report: whether to draw report and headline, which takes longer than the run.
        keys: run config keys, ``__`` for a dot and ``_`` for a hyphen.
    """
    given = {key.replace("__", ".").replace("_", "-"): value for key, value in keys.items()}
    config = parse({**FAST, "output": str(output), **given})
    with pytest.MonkeyPatch.context() as patch:
        if not report:
            patch.setattr("strategies.app.write_report", lambda folder: folder / "report.html")
            patch.setattr("strategies.app.save_headline", lambda run, stem: None)
        run_in_process(server_app, app, flatten(config), clients)
    return output / config.name


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` and the like."""
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def about(folder: Path) -> dict[str, Any]:
    """What config.json says."""
    return dict(json.loads((folder / "config.json").read_text()))


def checkpoint(folder: Path) -> Mapping[str, ndarray]:
    """The arrays of the server's last checkpoint."""
    found = Checkpoints(folder / "server" / "checkpoints").latest()
    assert found is not None
    return found.arrays

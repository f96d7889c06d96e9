"""What a round costs on a real model: ``python -m benchmarks.rounds``.

- A federation of three rounds of FedMKT, two clients and a server of SmolLM2-135M-Instruct on TREC:
  adapters everywhere, on the last quarter of the layers, and there with the layers below computed
  once a run. All is in one process, and each has a cache of its own, which is empty when it begins.
- What passes of that model cost; see ``benchmarks.passes``.
- With ``--before``, a clone of an earlier commit: the quickstart there and here, in turns.

``--models`` is a folder with the model's, ``--material`` one with data sets.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks import harness
from benchmarks.passes import measure_passes

MODEL = "smollm2-135m-instruct"
# A client has half of the private samples.
FEDERATION: Mapping[str, Any] = {
    "strategy": "fedmkt",
    "rounds": 3,
    "baselines": False,
    "data.partition": "iid",
    "data.private": 800,
    "data.public": 400,
    "data.holdout": 0,
    "data.test": 100,
    "data.questions": 50,
    "data.max-length": 64,
}
QUICK: Mapping[str, Any] = {
    "rounds": 1,
    "data.private": 24,
    "data.public": 12,
    "data.test": 6,
    "data.questions": 2,
    "data.blind": 6,
    "local.steps": 2,
    "server-distill.steps": 2,
    "client-distill.steps": 2,
}
QUARTER = {"server.lora-layers": 0.25, "clients.lora-layers": 0.25}
WAYS: Mapping[str, Mapping[str, Any]] = {
    "everywhere": {},
    "uncached": QUARTER | {"server.states-cache": 0, "clients.states-cache": 0},
    "cached": QUARTER,
}


@dataclass(frozen=True, slots=True)
class Federated:
    """A federation that has run.

    Attributes:
        seconds: of the process, start-up included.
        states: bytes of hidden states on disk.
        losses: test loss, nats per byte, by model, at the end.
        phases: seconds by phase of the rounds, of the slowest client each.
    """

    seconds: float
    states: int
    losses: dict[str, float]
    phases: dict[str, float]


def federate(code: Path, keys: Mapping[str, Any], clients: int) -> Federated:
    """Run a federation with the code of a folder, in a process and with a cache of its own."""
    with tempfile.TemporaryDirectory() as folder:
        given = {**keys, "output": folder, "name": "run"}
        shown = {k: str(v).lower() if isinstance(v, bool) else v for k, v in given.items()}
        options = [word for k, v in shown.items() for word in ("--set", f"{k}={v}")]
        command = [sys.executable, "-m", "fedfuse.cli", "simulate", "--in-process"]
        command += ["--clients", str(clients), *options]
        cache = Path(folder) / "cache"
        models = (
            Path(os.environ.get("FEDFUSE_CACHE", Path.home() / ".cache" / "fedfuse")) / "models"
        )
        cache.mkdir()
        if models.is_dir():  # built-in models are built beforehand
            (cache / "models").symlink_to(models)
        environment = os.environ | {"FEDFUSE_CACHE": str(cache), "PYTHONPATH": str(code)}
        started = time.monotonic()
        subprocess.run(command, cwd=code, env=environment, check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - started
        files = (cache / "states").glob("*.states") if (cache / "states").is_dir() else ()
        states = sum(file.stat().st_blocks * 512 for file in files)
        return Federated(seconds, states, *_outcome(Path(folder) / "run"))


def _outcome(folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Final losses and seconds by phase of a run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["stage"] == "federated"]
    by_model: dict[str, list[float]] = {}
    for line in (line for line in last if line["round"] == last[-1]["round"]):
        by_model.setdefault(str(line["model"]), []).append(line["loss"])
    losses = {model: sum(values) / len(values) for model, values in by_model.items()}
    longest: dict[tuple[int, str], float] = {}
    for text in (folder / "messages.jsonl").read_text().splitlines():
        line = json.loads(text)
        key = (line["round"], line["phase"])
        longest[key] = max(longest.get(key, 0.0), line["seconds"])
    phases: dict[str, float] = {}
    for (_, phase), seconds in longest.items():
        phases[phase] = phases.get(phase, 0.0) + seconds
    return losses, phases


def measure_federations(models: Path, material: Path, *, quick: bool) -> Iterator[harness.Measured]:
    """The federation in each of the ``WAYS``, one after another."""
    keys = FEDERATION | (QUICK if quick else {})
    keys |= {"data.source": material / "datasets" / "trec" / "train.jsonl"}
    keys |= {"server.model": models / MODEL, "clients.model": models / MODEL}
    found: dict[str, Federated] = {}
    for way, more in WAYS.items():
        found[way] = federate(harness.ROOT, keys | more, clients=2)
        print(f"{way}: {found[way].seconds:.0f} s", file=sys.stderr, flush=True)
    cached, uncached = found["cached"], found["uncached"]
    off = max(abs(cached.losses[m] / loss - 1) for m, loss in uncached.losses.items())
    results = {
        "cached_over_uncached_time": cached.seconds / uncached.seconds,
        "cached_over_everywhere_time": cached.seconds / found["everywhere"].seconds,
        "cached_loss_off": off,
        "cached_megabytes": cached.states / 1e6,
    }
    raw = {
        way: {"seconds": round(one.seconds, 1), "losses": one.losses, "phases": one.phases}
        for way, one in found.items()
    }
    yield harness.Measured(results, raw)


def measure_quickstart(before: Path, *, repeats: int, quick: bool) -> harness.Measured:
    """Time of the quickstart here over that of an earlier commit; and of clients' distillation."""
    keys: dict[str, Any] = dict(QUICK) if quick else {}
    ways = {"before": before.resolve(), "here": harness.ROOT}
    found: dict[str, list[Federated]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, code in ways.items():
            found[way].append(federate(code, keys, clients=4))
            print(f"quickstart {way}: {found[way][-1].seconds:.0f} s", file=sys.stderr, flush=True)

    def ratio(part: Any) -> float:
        pairs = zip(found["here"], found["before"], strict=True)
        return median(part(here) / part(old) for here, old in pairs)

    results = {
        "quickstart_over_before": ratio(lambda run: run.seconds),
        "client_distill_over_before": ratio(lambda run: run.phases["train.distill"]),
    }
    raw = {
        way: [{"seconds": round(run.seconds, 1), "losses": run.losses} for run in runs]
        for way, runs in found.items()
    }
    return harness.Measured(results, {"quickstart": raw})


@harness.benchmark
def main(
    models: Annotated[Path, typer.Option(help=f"Folder with the folder {MODEL}.")],
    material: harness.Material,
    file: harness.File = harness.ROOT / "benchmarks" / "results" / "rounds.json",
    before: Annotated[Path | None, typer.Option(help="A clone of an earlier commit.")] = None,
    repeats: harness.Repeats = 3,
    quick: harness.Quick = False,
) -> Iterator[harness.Measured]:
    """Measure, and write the result file after each part; parts that it has stay."""
    models, material = models.resolve(), material.resolve()
    passes = measure_passes(models / MODEL, material, repeats=repeats, quick=quick)
    results: dict[str, Any] = dict(passes.ratios)
    raw: dict[str, Any] = {"passes": dict(passes.seconds)}
    yield harness.Measured(results, raw)
    if before:
        found = measure_quickstart(before, repeats=repeats, quick=quick)
        results, raw = results | dict(found.results), raw | dict(found.raw)
        yield harness.Measured(results, raw)
    for found in measure_federations(models, material, quick=quick):
        yield harness.Measured(results | dict(found.results), raw | dict(found.raw))

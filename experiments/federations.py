"""Whole federations as cells: started by a command or in this process, and resumed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients.app import app as client_app
from experiments.harness import name_of
from fedfuse.config.run_config import Scalar, flatten, parse
from fedfuse.simulation.in_process import run_in_process
from fedfuse.tracking.run import RunFolder, read_run
from strategies.app import app as server_app

# A run by variant and seed.
RunKey = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Federations:
    """A study whose cells are runs; what is kept of them is their run folders."""

    cells: Mapping[RunKey, Sequence[str]]  # arguments of ``fedfuse simulate``
    folder: str  # of the run folders
    summarize: Callable[[dict[RunKey, RunFolder]], Mapping[str, Any]]  # headline numbers
    parallel: int  # runs at a time

    def run(self, output: Path) -> dict[str, Any]:
        """Run what is not finished; returns the study's part of the result file."""
        folder = output.resolve() / f"experiment-{self.folder}"

        def cell(key: RunKey) -> RunFolder:
            arguments = ("--in-process", "--set", f"seed={key[1]}", *self.cells[key])
            return simulate(folder / name_of(key), arguments)

        with ThreadPoolExecutor(self.parallel) as pool:  # they wait for processes
            runs = dict(zip(self.cells, pool.map(cell, self.cells), strict=True))
        return {
            "wire_bytes": {name_of(key): traffic(run) for key, run in runs.items()},
            "summary": self.summarize(runs),
            "cells": raw_cells(runs),
        }


def simulate(folder: Path, arguments: Sequence[str], **environment: str) -> RunFolder:
    """The finished run of a folder, simulated in a process of its own unless it is there."""
    run = finished_run(folder)
    if run is None:
        command = [sys.executable, "-m", "fedfuse.cli", "simulate"]
        command += ["--set", f"name={folder.name}", "--set", f"output={folder.parent}", *arguments]
        folder.parent.mkdir(parents=True, exist_ok=True)
        log = folder.with_name(f"{folder.name}.log")
        with log.open("w") as file:
            env = {**os.environ, **environment}
            failed = subprocess.call(command, stdout=file, stderr=subprocess.STDOUT, env=env)
        if failed:
            raise SystemExit(f"{folder.name} failed; see {log}")
        run = read_run(folder)
    print(f"finished: {folder.name}", flush=True)
    return run


def run_once(keys: Mapping[str, Scalar], clients: int) -> RunFolder:
    """The finished run of a config, run in this process unless its folder has it."""
    folder = Path(str(keys["output"])) / str(keys["name"])
    run = finished_run(folder)
    if run is None:
        run_in_process(server_app, client_app, flatten(parse(keys)), clients)
        run = read_run(folder)
    return run


def finished_run(folder: Path) -> RunFolder | None:
    """The run of a folder if it is finished; what was interrupted is removed."""
    if (folder / "config.json").exists():
        run = read_run(folder)
        if run.status == "finished":
            return run
    shutil.rmtree(folder, ignore_errors=True)
    return None


def traffic(run: RunFolder) -> int:
    """Bytes of all messages of a run, both ways."""
    return sum(line.sent_bytes + line.received_bytes for line in run.messages)


def raw_cells(runs: Mapping[RunKey, RunFolder]) -> list[dict[str, Any]]:
    """Every measured number: one cell per variant, seed, stage, round, model and domain."""
    where = ("stage", "round", "model", "domain")
    return [
        {"variant": variant, "seed": seed}
        | {name: getattr(line, name) for name in where}
        | {"loss": round(line.loss, 5)}
        | {"accuracy": None if line.accuracy is None else round(line.accuracy, 4)}
        for (variant, seed), run in runs.items()
        for line in run.metrics
    ]

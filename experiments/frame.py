"""The frame that every experiment's results.json has: what ran, on what, and what came out."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedfuse.tracking.run import RunFolder, read_run
from fedfuse.tracking.run_writer import commit, versions


@dataclass(frozen=True, slots=True)
class Job:
    """One run of an experiment.

    Attributes:
        variant: its name in the results.
        seed: the run's seed.
        arguments: of ``fedfuse simulate``.
    """

    variant: str
    seed: int
    arguments: tuple[str, ...]


def run_jobs(jobs: Sequence[Job], output: Path, parallel: int) -> dict[tuple[str, int], RunFolder]:
    """Run every job in a process of its own, ``parallel`` at a time; a failed one stops everything.

    A job whose run folder is there and finished is not run again.
    """

    def one(job: Job) -> RunFolder:
        name = f"{job.variant}-{job.seed}"
        folder = output / name
        if not (folder / "report.html").exists():
            command = [sys.executable, "-m", "fedfuse.cli", "simulate", "--in-process"]
            command += ["--set", f"name={name}", "--set", f"output={output}"]
            command += ["--set", f"seed={job.seed}", *job.arguments]
            output.mkdir(parents=True, exist_ok=True)
            with (output / f"{name}.log").open("w") as log:
                done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
            if done.returncode:
                raise SystemExit(f"{name} failed; see {output / name}.log")
        print(f"finished: {name}", flush=True)
        return read_run(folder)

    with ThreadPoolExecutor(parallel) as pool:
        runs = list(pool.map(one, jobs))
    return {(job.variant, job.seed): run for job, run in zip(jobs, runs, strict=True)}


def write_results(
    path: Path,
    *,
    command: str,
    started: float,
    summary: Mapping[str, Any],
    cells: Sequence[Mapping[str, Any]],
    seeds: Sequence[int] = (),
    runs: Mapping[tuple[str, int], RunFolder] | None = None,
) -> None:
    """Write a result file, summary first, then the raw cells; and print the summary.

    Args:
        path: of the file.
        command: what repeats it.
        started: ``time.monotonic()`` at the start.
        summary: the headline numbers.
        cells: everything measured.
        seeds: where the command takes them.
        runs: by ``run_jobs``; their memory and traffic are noted.
    """
    frame = {
        "command": command,
        **({"seeds": list(seeds)} if seeds else {}),
        "commit": commit(),
        "versions": versions(),
        "seconds": round(time.monotonic() - started, 1),
        **({} if runs is None else _effort(runs)),
        "summary": dict(summary),
        "cells": list(cells),
    }
    path.write_text(json.dumps(frame, indent=1) + "\n")
    print(json.dumps(frame["summary"], indent=1))
    print(f"results: {path}")


def _effort(runs: Mapping[tuple[str, int], RunFolder]) -> dict[str, Any]:
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {
        "peak_memory_mb": round(children / 1024),
        "wire_bytes": {f"{v}-{s}": traffic(run) for (v, s), run in runs.items()},
    }


def put_table(path: Path, table: str, name: str = "table") -> None:
    """Put a table between its marks in a document."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = path.read_text().split(begin)
    _, after = rest.split(end)
    path.write_text(f"{before}{begin}\n{table}\n{end}{after}")


def traffic(run: RunFolder) -> int:
    """Bytes of all messages of a run, both ways."""
    return sum(line.sent_bytes + line.received_bytes for line in run.messages)


def raw_cells(runs: Mapping[tuple[str, int], RunFolder]) -> list[dict[str, Any]]:
    """Every measured number: one cell per variant, seed, stage, round, model and domain."""
    return [
        {
            "variant": variant,
            "seed": seed,
            "stage": line.stage,
            "round": line.round,
            "model": line.model,
            "domain": line.domain,
            "loss": round(line.loss, 5),
            "accuracy": None if line.accuracy is None else round(line.accuracy, 4),
        }
        for (variant, seed), run in runs.items()
        for line in run.metrics
    ]

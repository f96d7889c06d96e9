"""A server that is killed at random points and resumed: ``python -m experiments.faults.kills``.

The server runs in a process of its own, with its clients, and ends by SIGKILL at one of all the
calls and returns of this project's functions: in the middle of a training step as well as between
the writing of a file and its renaming. What the resumed run finds out, every adapter and every
measurement, is compared bit for bit with a run that nobody disturbed.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import numpy as np
import typer

from experiments.faults.fleet import Schedule
from experiments.faults.run import SMALL, outcome, run_among
from fedfuse.flower.config import flatten, parse
from fedfuse.models.builtin import ensure
from fedfuse.report.writing import commit, versions

ROOT = str(Path(__file__).resolve().parents[2]) + os.sep
OURS = tuple(ROOT + name + os.sep for name in ("fedfuse", "strategies", "clients"))
STRATEGIES = ("fedmkt", "fedfuse")
CLIENTS = 2
RESULTS = Path(__file__).with_name("kills.json")


class Steps:
    """Counts the calls and returns of this project's functions.

    Attributes:
        count: so far.
    """

    def __init__(self, last: int = 0, end: Callable[[str], None] | None = None) -> None:
        self.count = 0
        self._last, self._end = last, end

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """What ``sys.setprofile`` is given."""
        if event in ("call", "return") and frame.f_code.co_filename.startswith(OURS):
            self.count += 1
            if self._end and self.count == self._last:
                name = f"{frame.f_code.co_filename.removeprefix(ROOT)}:{frame.f_code.co_qualname}"
                self._end(f"{event} of {name}")


def in_a_process(work: Callable[[int], None]) -> tuple[int, str]:
    """Do something in a process of its own.

    Args:
        work: given a pipe to write to.

    Returns:
        the signal that ended it, 0 for none, and what it wrote.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            work(writing)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code > 0:
        raise SystemExit("a run failed")
    return -code, said


def small_run(strategy: str, folder: Path, steps: Steps | None = None, resume: bool = False) -> int:
    """A run of some rounds; returns the number of steps that were counted."""
    given = {"strategy": strategy, "name": folder.name, "output": str(folder.parent)}
    if resume:
        given["resume"] = str(folder)
    config = flatten(parse({**SMALL, **given}))
    sys.setprofile(steps)
    try:
        run_among(Schedule({}, {}), config, CLIENTS)
    finally:
        sys.setprofile(None)
    return steps.count if steps else 0


def kill_and_resume(strategy: str, folder: Path, step: int) -> dict[str, Any]:
    """Where the server was, where it went on, and what it found out."""

    def killed(pipe: int) -> None:
        def end(where: str) -> None:
            os.write(pipe, where.encode())
            os.kill(os.getpid(), signal.SIGKILL)

        small_run(strategy, folder, Steps(step, end))

    ended_by, where = in_a_process(killed)
    if ended_by != signal.SIGKILL:
        raise SystemExit(f"step {step} of {strategy}: the run was not killed")
    begun = (folder / "config.json").exists()
    if not begun:
        shutil.rmtree(folder, ignore_errors=True)
    in_a_process(lambda pipe: small_run(strategy, folder, resume=begun) and None)
    history = folder / "events.jsonl"
    resumed = json.loads(history.read_text().splitlines()[-1])["detail"] if begun else "not begun"
    return {"strategy": strategy, "step": step, "killed at": where, "resumed": resumed}


def main(
    points: Annotated[int, typer.Option(help="Number of points, half of them per strategy.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the points.")] = 0,
    results: Annotated[Path, typer.Option(help="File to write.")] = RESULTS,
) -> None:
    """Kill and resume, and write whether anything is different."""
    logging.disable(logging.ERROR)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    ensure(["builtin:server", "builtin:gpt2", "builtin:llama"])
    rng, started = np.random.default_rng(seed), time.monotonic()
    cells: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for strategy in STRATEGIES:
            # Here and twice: the second run and the children find models and data loaded.
            small_run(strategy, Path(temporary) / f"{strategy}-first")
            whole = Path(temporary) / strategy
            steps = small_run(strategy, whole, Steps())
            for _ in range(points // len(STRATEGIES)):
                step = int(rng.integers(1, steps + 1))
                folder = Path(temporary) / f"{strategy}-{len(cells)}"
                cell = kill_and_resume(strategy, folder, step)
                cell |= {"of steps": steps, "identical": outcome(folder) == outcome(whole)}
                cells.append(cell)
                print(json.dumps(cell), flush=True)
    summary = {"points": len(cells), "identical": sum(cell["identical"] for cell in cells)}
    frame = {
        "command": f"python -m experiments.faults.kills --points {points} --seed {seed}",
        "commit": commit(),
        "versions": versions(),
        "seconds": round(time.monotonic() - started, 1),
        "summary": summary,
        "cells": cells,
    }
    results.write_text(json.dumps(frame, indent=1) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    typer.run(main)

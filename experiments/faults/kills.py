"""A server that is killed at random points and resumed: ``python -m experiments.faults.kills``.

The server runs in a process of its own, with its clients, and ends by SIGKILL at a call or a return
of one of this project's functions: in the middle of a training step as well as between the writing
of a file and its renaming. What the resumed run finds out, every adapter and every measurement, is
compared bit for bit with a run that nobody disturbed.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import numpy as np
import typer

from experiments import harness
from experiments.faults.fleet import Schedule
from experiments.faults.run import SMALL, outcome, run_among
from experiments.faults.tables import publish
from fedfuse.builtin.models import ensure
from fedfuse.config.run_config import Scalar, flatten, parse
from fedfuse.tracking.run import read_run

ROOT = str(Path(__file__).resolve().parents[2]) + os.sep
OURS = tuple(ROOT + name + os.sep for name in ("fedfuse", "strategies", "clients"))
STRATEGIES = ("fedmkt", "fedfuse")
CLIENTS = 2

# A call or return of a function.
Event = tuple[str, str]
# One of its times.
Point = tuple[Event, int]


class Steps:
    """Counts the calls and returns of this project's functions; ends this process at a point."""

    def __init__(self, point: Point | None = None) -> None:
        self.counts: Counter[Event] = Counter()
        self._point = point

    def __call__(self, frame: FrameType, kind: str, argument: object) -> None:
        """What ``sys.setprofile`` is given."""
        code = frame.f_code
        if kind in ("call", "return") and code.co_filename.startswith(OURS):
            event = kind, f"{code.co_filename.removeprefix(ROOT)}:{code.co_qualname}"
            self.counts[event] += 1
            if self._point == (event, self.counts[event]):
                os.kill(os.getpid(), signal.SIGKILL)

    def draw(self, rng: np.random.Generator) -> Point:
        """One of the times of one of the events.

        Every event is as likely: by time alone nearly all would be inside of a few short functions.
        """
        events = sorted(self.counts)
        event = events[int(rng.integers(len(events)))]
        return event, int(rng.integers(1, self.counts[event] + 1))


def in_a_process(work: Callable[[], None]) -> int:
    """Do something in a process of its own; returns the signal that ended it, 0 for none."""
    child = get_context("fork").Process(target=work)
    child.start()
    child.join()
    if child.exitcode is None or child.exitcode > 0:
        raise SystemExit("a run failed")
    return -child.exitcode


def small_run(strategy: str, folder: Path, steps: Steps | None = None, **more: Scalar) -> None:
    """A run of some rounds, or with ``resume`` the rest of one."""
    given = {"strategy": strategy, "name": folder.name, "output": str(folder.parent), **more}
    config = flatten(parse({**SMALL, **given}))
    sys.setprofile(steps)
    try:
        run_among(Schedule({}, {}), config, CLIENTS)
    finally:
        sys.setprofile(None)


def kill_and_resume(strategy: str, folder: Path, point: Point) -> dict[str, Any]:
    """Where the server was, and where it went on."""
    (kind, function), time_of = point
    place = f"{kind} {time_of} of {function}"
    if in_a_process(lambda: small_run(strategy, folder, Steps(point))) != signal.SIGKILL:
        raise SystemExit(f"{strategy} was not killed at {place}")
    if not (folder / "config.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        in_a_process(lambda: small_run(strategy, folder))
        resumed = "not begun"
    elif read_run(folder).status == "finished":
        resumed = "finished"  # It was about to be reported.
    else:
        in_a_process(lambda: small_run(strategy, folder, resume=str(folder)))
        resumed = read_run(folder).events[-1].detail
    return {"strategy": strategy, "killed at": place, "goes on": resumed}


def kill_often(points: int, seed: int) -> list[dict[str, Any]]:
    """Kill and resume at points drawn at random, half of them per strategy."""
    rng = np.random.default_rng(seed)
    cells: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for strategy in STRATEGIES:
            # Here and twice: the second run and the children find models and data loaded.
            small_run(strategy, Path(temporary) / f"{strategy}-first")
            whole, steps = Path(temporary) / strategy, Steps()
            small_run(strategy, whole, steps)
            for _ in range(points // len(STRATEGIES)):
                folder = Path(temporary) / f"{strategy}-{len(cells)}"
                cell = kill_and_resume(strategy, folder, steps.draw(rng))
                cell["identical"] = outcome(folder) == outcome(whole)
                cells.append(cell)
                print(cell, flush=True)
    return cells


@harness.experiment("kills.json", draw=publish)
def main(
    points: Annotated[int, typer.Option(help="Number of points, half of them per strategy.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the points.")] = 0,
) -> harness.Study:
    """Kill and resume, and write whether anything is different."""
    logging.disable(logging.ERROR)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    ensure(["builtin:server", "builtin:gpt2", "builtin:llama"])
    return harness.Study(
        cells={("kills", points, seed): partial(kill_often, points, seed)},
        folder="faults",
        summarize=lambda cells: {
            "points": len(cells),
            "identical": sum(cell["identical"] for cell in cells),
        },
    )

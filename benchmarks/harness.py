"""What all benchmarks share: the command line, the clock, the models, the result file."""

from __future__ import annotations

import gc
import inspect
import json
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Annotated, Any, ParamSpec, TypeVar

import torch
import typer

from fedfuse.algorithms.local_model import LocalModel
from fedfuse.config.run_config import RunConfig, model_of_partition
from fedfuse.factory.data import shared_samples
from fedfuse.factory.models import load_local_model
from fedfuse.files import atomic_write
from fedfuse.tracking.run_writer import commit, versions

ROOT = Path(__file__).resolve().parents[1]
# Options that several benchmarks have.
Material = Annotated[Path, typer.Option(help="Folder with tokenizers, datasets and models.")]
File = Annotated[Path, typer.Option("--json", help="File to write.")]
Repeats = Annotated[int, typer.Option(min=1, help="Repeats of everything.")]
Steps = Annotated[int, typer.Option(min=1, help="Steps of a timed phase.")]
Quick = Annotated[bool, typer.Option(help="A check of the benchmark: sizes too small.")]
Seed = Annotated[int, typer.Option(help="Seed of everything made up.")]
# The run config of such a check.
QUICK: Mapping[str, Any] = {
    "data.private": 20,
    "data.public": 4,
    "data.test": 1,
    "data.questions": 2,
    "local.steps": 2,
    "server-distill.steps": 2,
    "client-distill.steps": 2,
}

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Measured:
    """Outcome of a benchmark.

    Attributes:
        results: headline numbers.
        raw: every repeat, and what the results were computed from.
        seed: seed of everything drawn.
    """

    results: Mapping[str, Any]
    raw: Mapping[str, Any]
    seed: int = 0


def benchmark(measure: Callable[P, Iterator[Measured]]) -> Callable[P, None]:
    """Make a command of a function that measures.

    Its parameters are the options, one of them ``file``, which is written anew after each outcome
    that it yields. It is run at once if its module is, so it stands at the end of it.
    """
    signature = inspect.signature(measure)

    @wraps(measure)
    def command(*args: P.args, **options: P.kwargs) -> None:
        given = signature.bind(*args, **options)
        given.apply_defaults()
        started, about = time.monotonic(), machine()  # before the benchmark makes it busy
        for found in measure(*args, **options):
            frame = {
                "command": command_line(measure, given.arguments),
                "seed": found.seed,
                "commit": commit(),
                "versions": versions() | {"rapidfuzz": version("rapidfuzz")},
                "machine": about | {"torch_threads": torch.get_num_threads()},
                "seconds": round(time.monotonic() - started, 1),
                "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                "results": {name: rounded(value) for name, value in found.results.items()},
                "raw": dict(found.raw),
            }
            write_whole(given.arguments["file"], frame)
            width = max(map(len, frame["results"]), default=0)
            for name, value in frame["results"].items():
                print(f"{name:{width}}  {value}")

    if measure.__module__ == "__main__":
        typer.run(command)
    return command


def command_line(
    function: Callable[..., Any], arguments: Mapping[str, Any], leave_out: tuple[str, ...] = ()
) -> str:
    """The command that repeats a call; folders and files are named in capitals."""
    path = Path(inspect.getfile(function)).resolve().relative_to(ROOT).with_suffix("")
    words = ["python", "-m", ".".join(path.parts)]
    for name, value in arguments.items():
        option = "--json" if name == "file" else f"--{name.replace('_', '-')}"
        if name in leave_out or value is None or value is False:
            continue
        words.append(option)
        if value is not True:
            words.append(name.upper() if isinstance(value, Path) else str(value))
    return " ".join(words)


def write_whole(path: Path, frame: Mapping[str, Any]) -> None:
    """Write a result file, whole or not at all; its folder is made if missing."""
    with atomic_write(path) as scratch:
        scratch.write_text(json.dumps(frame, indent=1) + "\n")
    print(f"results: {path}")


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall-clock seconds of every repeat, by name.

    Progress is a line after each measurement: a bar would redraw while the clock runs.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def measure(self, name: str, function: Callable[[], T], calls: int = 1) -> T:
        """Call, append the seconds per call, and return what the last call returned."""
        gc.disable()  # as timeit does: what else lives in the process is not searched meanwhile
        try:
            started = time.perf_counter()
            for _ in range(calls):
                result = function()
            seconds = (time.perf_counter() - started) / calls
        finally:
            gc.enable()
        self.seconds.setdefault(name, []).append(seconds)
        print(f"{name}: {seconds:.4g} s", file=sys.stderr, flush=True)
        return result

    def alternate(self, jobs: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, T]:
        """Measure all jobs in turns, so that what else the machine does hits all of them.

        Returns:
            By name, what the last call returned.
        """
        for _ in range(repeats):
            last = {name: self.measure(name, job) for name, job in jobs.items()}
        return last

    def median(self, name: str) -> float:
        """Median of the repeats so far."""
        return median(self.seconds[name])


def rounded(value: Any) -> Any:
    """To four significant digits, more than repeats agree in; whole numbers as they are."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def machine() -> dict[str, Any]:
    """Processor and system, and how busy they are."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.*)$", info.read_text() if info.exists() else "", re.M)
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cpu": named[1] if named else platform.processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "threads_environment": {
            name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ
        },
    }


def model_of(config: RunConfig, partition: int | None) -> LocalModel:
    """The server's model (``partition`` None) or a client's, as a run has it before training."""
    side = config.server if partition is None else config.clients
    name = side.model if partition is None else model_of_partition(side.model, partition)
    role = "server" if partition is None else "client"
    shared = shared_samples(config.data, config.seed)
    return load_local_model(role, name, side, shared, config.data.max_length, config.seed)

"""What the benchmarks share: the material, timings, and the frame of a result file."""

from __future__ import annotations

import gc
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from fedfuse.tokenizers.tokenizer import ROLES, TextTokenizer
from fedfuse.tracking.run_writer import commit, versions

# Where the texts come from, in this order.
SOURCES = ("gsm8k", "arc_easy", "arc_challenge")

T = TypeVar("T")


def load_tokenizer(material: Path, name: str) -> TextTokenizer:
    """A new object at each call, so that nothing computed for another measurement is kept."""
    folder = material / "tokenizers" / name
    config = json.loads((folder / "tokenizer_config.json").read_text())
    specials = {role: config[f"{role}_token"] for role in ROLES if config.get(f"{role}_token")}
    return TextTokenizer.from_json((folder / "tokenizer.json").read_text(), specials)


def load_text(material: Path) -> str:
    """Questions and worked answers of the data sets, one behind the other."""
    texts = []
    for source in SOURCES:
        with (material / "datasets" / source / "train.jsonl").open(encoding="utf-8") as file:
            for line in map(json.loads, file):
                texts.append(f"{line['question']} {line.get('target', '')}".strip())
    return "\n\n".join(texts)


def cut(text: str, ends: Int64[ndarray, " n"], length: int, tokens: int) -> list[str]:
    """The beginning of ``text`` in pieces of ``length`` tokens, ``tokens`` in all.

    Args:
        text: long text.
        ends: where its n tokens end, in bytes.
        length: of each piece.
        tokens: at most; fewer where the text is shorter or the last piece would be.

    Raises:
        SystemExit: when there is less text than one piece.
    """
    raw = np.frombuffer(text.encode(), dtype=np.uint8)
    # A byte 10xxxxxx is inside a character; a piece ends with the character.
    begins = np.flatnonzero(np.append(raw, 0) & 0xC0 != 0x80)
    last = ends[: max(tokens, length)][length - 1 :: length]
    places = np.append(0, begins[np.searchsorted(begins, last)]).tolist()
    if not len(last):
        raise SystemExit(f"the material has {len(ends)} tokens; a text of {length} is needed")
    return [raw[start:stop].tobytes().decode() for start, stop in pairwise(places)]


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

    def median(self, name: str) -> float:
        """Of the repeats so far."""
        return median(self.seconds[name])


def rounded(value: Any) -> Any:
    """To four significant digits, more than repeats agree in; whole numbers as they are."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def machine() -> dict[str, Any]:
    """What the numbers were measured on, and how busy it was at that time."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = named[0].partition(":")[2].strip() if named else model
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cpu": model,
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "threads_environment": {
            name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ
        },
    }


def write_json(
    path: Path,
    *,
    command: str,
    seed: int,
    started: float,
    about: Mapping[str, Any],
    results: Mapping[str, Any],
    raw: Mapping[str, Any],
) -> None:
    """Write a result file and print its results.

    Args:
        path: its folder is made if missing.
        command: what repeats it.
        seed: of everything drawn.
        started: ``time.monotonic()`` at the start.
        about: ``machine()`` at the start, before the benchmark itself made the machine busy.
        results: the headline numbers.
        raw: every repeat, and what the results were computed from.
    """
    frame = {
        "command": command,
        "seed": seed,
        "commit": commit(),
        "versions": versions() | {"rapidfuzz": version("rapidfuzz")},
        "machine": dict(about),
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "results": {name: rounded(value) for name, value in results.items()},
        "raw": dict(raw),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(frame, indent=1) + "\n")
    print(json.dumps(frame["results"], indent=1))
    print(f"results: {path}")

"""How much memory a block of code, and a family of processes, takes at most (Linux)."""

from __future__ import annotations

import ctypes
import gc
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from fedfuse.flower.processes import started_in

MB = 1e6


@contextmanager
def extra_memory(found: dict[str, float], name: str) -> Iterator[None]:
    """Put the megabytes that this process takes at most in the block, beyond what it had before,
    under a name."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed earlier must not serve the block
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    yield
    found[name] = round(_status("VmHWM") - before, 2)


def _status(key: str) -> float:
    kilobytes = re.search(rf"^{key}:\s+(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert kilobytes is not None
    return int(kilobytes[1]) * 1024 / MB


class Watch:
    """Samples the memory of all processes that inherit an environment variable, in a thread.

    A page that several processes share counts once (PSS).

    Attributes:
        peaks: megabytes at most: of all together (``simulation``), of the process of the ServerApp,
            where Flower's engine lives too (``server``), and of the largest client actor.
    """

    def __init__(self, variable: str, folder: Path, seconds: float = 0.5) -> None:
        self.peaks: Counter[str] = Counter()
        self._variable, self._folder, self._seconds = variable, folder, seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            now: Counter[str] = Counter()
            for process in started_in(self._folder, self._variable):
                try:
                    command = " ".join(process.cmdline())
                    taken = _proportional(process.pid)
                except (psutil.Error, OSError):  # it has just ended
                    continue
                now["simulation"] += taken
                if "flwr-simulation" in command:
                    now["server"] += taken
                elif command.startswith("ray::ClientAppActor"):
                    now["actor"] = max(now["actor"], taken)
            self.peaks |= now


def _proportional(pid: int) -> float:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(kb) for kb in re.findall(r"^Pss:\s+(\d+)", rollup, re.MULTILINE)) * 1024 / MB

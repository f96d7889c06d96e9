"""Memory of this process, of a family of processes, and of files that they map (Linux)."""

from __future__ import annotations

import ctypes
import gc
import re
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Self

import psutil

from fedfuse.simulation.processes import started_in

KINDS = {"ClientAppActor": "clients", "flwr-simulation": "server"}


def memory_of(pid: int, file: str = "") -> Counter[str]:
    """Bytes of a process: ``Pss``, ``Rss``, ``Anonymous`` (in a mapped file: pages written to).

    With a ``file``, only of the pages that map it.
    """
    found: Counter[str] = Counter()
    for part in psutil.Process(pid).memory_maps():
        if part.path.endswith(file):
            found.update(Pss=part.pss, Rss=part.rss, Anonymous=part.anonymous)
    return found


def peak_beyond(step: Callable[[], object], *, trim: bool = False) -> int:
    """Bytes that this process takes at most during a call, beyond what it had before.

    With ``trim`` what was freed earlier is given back first, so that it does not serve the call.
    """
    gc.collect()
    if trim:
        ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    step()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    """A size that the kernel keeps of this process, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


class Watch:
    """Samples processes that inherit an environment variable, in a thread.

    A page that several processes share counts once (PSS).

    Attributes:
        peak: bytes when all together had most: ``all``, and of ``clients``, ``server``, ``engine``.
        actors: client processes at that time.
        largest: bytes that one process of a kind had at most, at any time.
        file: bytes of the file's pages when most of it was there, as ``memory_of`` names them.
    """

    def __init__(self, variable: str, folder: Path, file: str = "", seconds: float = 0.25) -> None:
        self.peak, self.largest, self.file = Counter[str](), Counter[str](), Counter[str]()
        self.actors = 0
        self._where, self._name, self._seconds = (folder, variable), file, seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            now, file, actors = Counter[str](), Counter[str](), 0
            for process in started_in(*self._where):
                try:
                    command = " ".join(process.cmdline())
                    size = process.memory_full_info().pss
                    if self._name:
                        file += memory_of(process.pid, self._name)
                except (psutil.Error, OSError):  # it has just ended
                    continue
                kind = next((KINDS[part] for part in KINDS if part in command), "engine")
                now[kind] += size
                now["all"] += size
                self.largest |= Counter({kind: size})
                actors += kind == "clients"
            if now["all"] > self.peak["all"]:
                self.peak, self.actors = now, actors
            if file["Rss"] > self.file["Rss"]:
                self.file = file

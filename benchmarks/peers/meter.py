"""Seconds and memory of steps, measured alike in every environment (Linux)."""

from __future__ import annotations

import ctypes
import gc
import re
import time
from collections.abc import Callable
from pathlib import Path


class Meter:
    """Steps that follow one another in this process.

    What happens between two steps counts for the second, such as gathering its batch.

    Attributes:
        seconds: of each step.
        cpu_seconds: of the processor in each, which does not depend on what else the machine does.
        peak_bytes: what the process took at most in each, beyond what it had before.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.peak_bytes: list[int] = []
        self._begun: tuple[float, float, int] | None = None

    def mark(self) -> None:
        """A step ends here, if one had begun, and the next one begins."""
        self.stop()
        gc.collect()
        # What was freed earlier is given back, so that it does not serve the step.
        ctypes.CDLL(None).malloc_trim(0)
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self._begun = time.perf_counter(), time.process_time(), before

    def stop(self) -> None:
        """A step ends here, if one had begun."""
        if self._begun:
            started, worked, before = self._begun
            self.seconds.append(time.perf_counter() - started)
            self.cpu_seconds.append(time.process_time() - worked)
            self.peak_bytes.append(resident("VmHWM") - before)
        self._begun = None

    def repeat(self, step: Callable[[], object], times: int) -> None:
        """Measure a step some times."""
        for _ in range(times):
            self.mark()
            step()
            self.stop()


def resident(name: str) -> int:
    """Bytes of this process in memory: ``VmRSS``, or at most, ``VmHWM``."""
    found = re.search(rf"^{name}:\s+(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])

"""How much memory a block of code takes at most (Linux)."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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

"""Freed memory is used again, as far as the C library lets us say so."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from fedfuse.models.allocator import keep_freed_memory

# Page faults of a hundred blocks of 4 MB, one after another.
PROGRAM = """
import resource, sys
import numpy as np
from fedfuse.models.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def fill():
    first, second = np.ones(2**18), np.ones(2**18)
    return first + second
for _ in range(10):
    fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_blocks_are_used_again() -> None:
    assert keep_freed_memory()
    assert page_faults("keep") < page_faults("as it is") / 10

"""What the C library does with freed memory.

By default glibc gives large blocks back to the system as soon as they are freed. The next step of a
training needs as many again, and every page of them costs a fault.
"""

from __future__ import annotations

import ctypes
from functools import cache

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Larger blocks go back at once: the largest size that glibc accepts.
_KEPT_BLOCK = 32 * 2**20
# Free memory that a process keeps at most, bytes.
_KEPT = 256 * 2**20


@cache
def keep_freed_memory() -> bool:
    """Let this process use freed blocks again; returns whether its C library can be told so.

    Has no effect where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function, or no C library of that kind
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _KEPT_BLOCK) and mallopt(_TRIM_THRESHOLD, _KEPT))

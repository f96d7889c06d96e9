"""Tables of a pair of tokenizers in files, which several processes may read and write at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy import ndarray

from fedfuse.files import atomic_write


def save_arrays(path: Path, **arrays: ndarray) -> None:
    """Write a file whole or not at all.

    Raises:
        FedfuseError: when it cannot be written.
    """
    with atomic_write(path) as scratch, scratch.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_arrays(path: Path, *names: str) -> list[ndarray] | None:
    """The named arrays of a file; None when there is none or it is damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except Exception:  # damage shows in many ways: in the zip, the compression, the array header
        return None

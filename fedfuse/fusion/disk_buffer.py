"""Aligned teachers in files: memory does not grow with their number."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import numpy as np
from jaxtyping import Int32
from numpy import ndarray

from fedfuse.errors import FedfuseError
from fedfuse.events import EventDistribution
from fedfuse.fusion.fuser import AlignedTeacher
from fedfuse.sparse import SparseDistribution

TOKEN_FIELDS = ("indices", "logprobs", "tail_logprob", "weight")


@dataclass(frozen=True, slots=True)
class BufferedRows:
    """A teacher's distributions in a file, read some rows at a time.

    Attributes:
        path: .npy file with one record per row.
        k: entries per row.
    """

    path: Path
    k: int

    def __getitem__(self, rows: slice) -> SparseDistribution:
        """Read some of the rows.

        Raises:
            FedfuseError: when the file cannot be read.
        """
        return SparseDistribution(**_read(self.path, rows))


@dataclass(frozen=True, slots=True)
class BufferedEvents:
    """The same of a teacher over events.

    Attributes:
        path: .npy file with one record per row.
        k: events per row.
        orders: permutations that ranges are in; in memory, shared by all teachers of a tokenizer.
    """

    path: Path
    k: int
    orders: Int32[ndarray, "orders vocab"]

    def __getitem__(self, rows: slice) -> EventDistribution:
        """Read some of the rows.

        Raises:
            FedfuseError: when the file cannot be read.
        """
        return EventDistribution(self.orders, **_read(self.path, rows))


def _read(path: Path, rows: slice) -> dict[str, ndarray]:
    """The fields of some rows of a file."""
    try:
        # Mapped anew each time: pages of a map that stays open count as memory of the process.
        table = np.array(np.load(path, mmap_mode="r")[rows])
    except (OSError, ValueError) as error:
        raise FedfuseError(f"{path}: expected the rows that were written, got {error}") from error
    return {name: table[name] for name in table.dtype.names or ()}


class DiskBuffer:
    """A temporary folder for aligned teachers, deleted when the block is left.

    Args:
        folder: folder to make it in; on a disk, or nothing is gained.
    """

    def __init__(self, folder: Path) -> None:
        self._parent = folder

    def __enter__(self) -> Self:
        try:
            self._folder = TemporaryDirectory(prefix="candidates-", dir=self._parent)
        except OSError as error:
            raise FedfuseError(
                f"{self._parent}: expected a folder, got {error.strerror}"
            ) from error
        self._count = 0
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def put(self, teacher: AlignedTeacher) -> AlignedTeacher:
        """Write a teacher's distributions; returns the teacher that reads them from the file.

        Raises:
            FedfuseError: when the disk is full or cannot be written.
        """
        whole = teacher.distributions[slice(None)]
        if isinstance(whole, SparseDistribution):
            arrays = {name: getattr(whole, name) for name in TOKEN_FIELDS}
        else:
            arrays = whole.columns()
        record = [(name, array.dtype, array.shape[1:]) for name, array in arrays.items()]
        table = np.empty(len(whole.weight), dtype=record)
        for name, array in arrays.items():
            table[name] = array
        path = Path(self._folder.name) / f"{self._count}.npy"
        self._count += 1
        try:
            np.save(path, table)
        except OSError as error:
            raise FedfuseError(
                f"{path}: expected a disk with {table.nbytes} bytes free for each client, got "
                f"{error.strerror or error}"
            ) from error
        if isinstance(whole, EventDistribution):
            return replace(teacher, distributions=BufferedEvents(path, whole.k, whole.orders))
        return replace(teacher, distributions=BufferedRows(path, whole.k))

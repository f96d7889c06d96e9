"""Hidden states of a data set's tokens on disk, mapped into memory and shared by processes."""

from __future__ import annotations

import logging
import mmap
import os
import sys
import weakref
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy import ndarray
from torch import Tensor

logger = logging.getLogger(__name__)
# Files that a process holds open, with those of the clients that it plays.
_OPEN = 64


class StatesFile:
    """States of a data set's T tokens, written a text at a time.

    Before them stands a number for each token, and at a text's first token it is a checksum of its
    states: a text that was not written, or not whole, is known as missing, after a crash or beside
    another process that writes it now. What several processes write is the same.
    """

    def __init__(self, path: Path, tokens: int, width: int, dtype: torch.dtype) -> None:
        """Open a file, or make one that is empty and takes no room yet.

        Args:
            path: where it is; its name stands for the content.
            tokens: T.
            width: d of a state.
            dtype: dtype of the states.

        Raises:
            OSError: where it cannot be made or mapped.
        """
        self.path = path
        self._row, self._begin = width * dtype.itemsize, _marks_bytes(tokens)
        size = states_bytes(tokens, width, dtype)
        # Kept open: by its name another process may have removed it, and made another, meanwhile.
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        weakref.finalize(self, os.close, self._handle)
        os.ftruncate(self._handle, size)
        os.utime(self._handle)
        self._map = mmap.mmap(self._handle, size)
        self._marks = np.frombuffer(self._map, np.uint32, tokens)
        count, offset = tokens * width, self._begin
        states = torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset)
        self._states = states.view(tokens, width)
        self._known = np.zeros(tokens, dtype=bool)  # texts that were found whole, by first token

    def missing(
        self, starts: Int64[ndarray, " texts"], lengths: Int64[ndarray, " texts"]
    ) -> Bool[ndarray, " texts"]:
        """Which texts are not in the file; each is given by its first token and its length."""
        for start, length in zip(starts, lengths, strict=True):
            if not self._known[start] and self._marks[start]:
                self._known[start] = self._marks[start] == _mark(self._states[start:][:length])
        found: Bool[ndarray, " texts"] = ~self._known[starts]
        return found

    def write(self, start: int, states: Float[Tensor, "length width"]) -> None:
        """Put a text's states in.

        Raises:
            OSError: on a disk that is full. (A store through the map would be fatal there.)
        """
        _write(self._handle, _bytes(states), self._begin + start * self._row)
        _write(self._handle, _mark(states).to_bytes(4, sys.byteorder), 4 * start)

    def read(
        self, positions: Int64[ndarray, "texts length"]
    ) -> Float[Tensor, "texts length width"]:
        """``[B, L, d]`` states of tokens, each given by its place among the T."""
        return self._states[torch.from_numpy(positions)]


class StatesFolder:
    """Files of states, of at most so many bytes together; the longest unused go first.

    Attributes:
        path: the folder.
        limit: bytes.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path, self.limit = path, limit
        self._open: OrderedDict[str, StatesFile | None] = OrderedDict()

    def open(self, name: str, tokens: int, width: int, dtype: torch.dtype) -> StatesFile | None:
        """A file by its name, new or as it was left; None where there is no room for it.

        Args:
            name: digest of the content.
            tokens: see ``StatesFile``, as for the others.
            width: width of a state.
            dtype: dtype of the states.
        """
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        self._open[name] = self._made(self.path / f"{name}.states", tokens, width, dtype)
        if len(self._open) > _OPEN:
            self._open.popitem(last=False)
        return self._open[name]

    def give_up(self, name: str) -> None:
        """Keep nothing more under a name, as on a disk that is full."""
        self._open[name] = None

    def _made(self, path: Path, tokens: int, width: int, dtype: torch.dtype) -> StatesFile | None:
        size = states_bytes(tokens, width, dtype)
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._make_room(path, size):
                return StatesFile(path, tokens, width, dtype)
            reason = f"{size / 2**30:.1f} GiB more than states-cache allows"
        except OSError as error:
            reason = str(error)
        logger.warning("hidden states are not kept in %s: %s", self.path, reason)
        return None

    def _make_room(self, path: Path, size: int) -> bool:
        """Remove what nobody here uses until a file of a size has room."""
        others = [file for file in self.path.glob("*.states") if file != path]
        ages = sorted((file.stat().st_mtime, file) for file in others)
        taken = sum(file.stat().st_size for file in others)
        used = {file.path for file in self._open.values() if file}
        for _, file in ages:
            if taken + size <= self.limit:
                break
            if file not in used:
                taken -= file.stat().st_size
                file.unlink(missing_ok=True)
        return taken + size <= self.limit


def states_bytes(tokens: int, width: int, dtype: torch.dtype) -> int:
    """Bytes of a file with states of so many tokens."""
    return _marks_bytes(tokens) + tokens * width * dtype.itemsize


def _marks_bytes(tokens: int) -> int:
    return -(-4 * tokens // 64) * 64  # states begin at a place that any dtype may


def _bytes(states: Tensor) -> bytes:
    return states.cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _mark(states: Tensor) -> int:
    """Checksum of states; 0 means none."""
    return zlib.crc32(_bytes(states)) or 1


def _write(handle: int, data: bytes, offset: int) -> None:
    while data:  # a disk that fills up takes a part first
        written = os.pwrite(handle, data, offset)
        data, offset = data[written:], offset + written

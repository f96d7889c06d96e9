"""Checkpoints, a file per round, from which a killed process of either side goes on.

A file is in the safetensors format: flat arrays by name, and facts as JSON in its header, beside a
checksum of both, by which a file that was damaged later is found.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy import ndarray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedfuse.errors import FedfuseError
from fedfuse.files import atomic_write

T = TypeVar("T")
log = logging.getLogger(__name__)
_NAME = re.compile(r"round-(\d+)\.safetensors")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """State after a round of a run: arrays by name, of any dtype of safetensors, and JSON facts."""

    round: int
    arrays: Mapping[str, ndarray]
    facts: Mapping[str, Any] = field(default_factory=dict)


class Checkpoints:
    """A folder with the last ``keep`` checkpoints of one run: more than one, in case of damage.

    Attributes:
        damaged: errors of the files that the last call of ``latest`` passed over.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self._folder = folder
        self._keep = keep
        self.damaged: list[str] = []

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint in place of any other of its round; the oldest is removed.

        Raises:
            FedfuseError: when it cannot be written; those before stay.
        """
        arrays = {n: np.asarray(value, order="C") for n, value in checkpoint.arrays.items()}
        said = json.dumps({"round": checkpoint.round, "facts": dict(checkpoint.facts)})
        metadata = {"said": said, "sha256": _digest(said, arrays)}
        with atomic_write(self._path(checkpoint.round)) as scratch:
            save_file(arrays, scratch, metadata)
        for number in self.rounds()[: -self._keep]:
            self._path(number).unlink()

    def latest(self, last: int | None = None) -> Checkpoint | None:
        """Newest undamaged checkpoint, of round ``last`` or before; None where there is none."""
        self.damaged = []
        for number in reversed(self.rounds()):
            if last is None or number <= last:
                try:
                    return read(self._path(number))
                except FedfuseError as error:
                    log.warning("%s; taking the one before", error)
                    self.damaged.append(str(error))
        return None

    def peek(self, last: int) -> Mapping[str, Any]:
        """Facts of the newest, of round ``last`` or before, unchecked; empty if unreadable."""
        numbers = [number for number in self.rounds() if number <= last]
        try:
            with safe_open(self._path(max(numbers)), framework="np") as file:
                said = json.loads((file.metadata() or {})["said"])
        except (OSError, SafetensorError, ValueError, KeyError):
            return {}
        return dict(said["facts"])

    def delete_after(self, after: int) -> None:
        """Remove checkpoints of later rounds."""
        for number in self.rounds():
            if number > after:
                self._path(number).unlink()

    def rounds(self) -> list[int]:
        """Rounds that there are files of, ascending."""
        names = [path.name for path in self._folder.iterdir()] if self._folder.is_dir() else []
        return sorted(int(found[1]) for name in names if (found := _NAME.fullmatch(name)))

    def _path(self, number: int) -> Path:
        return self._folder / f"round-{number}.safetensors"


def read(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        FedfuseError: for a file that is no checkpoint, or that was damaged.
    """
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise FedfuseError(f"{str(path)!r} is damaged: {error}") from error
    said = metadata.get("said", "")
    if metadata.get("sha256") != _digest(said, arrays):
        raise FedfuseError(f"{str(path)!r} is damaged: its checksum differs")
    about = json.loads(said)
    return Checkpoint(about["round"], arrays, about["facts"])


def as_array(values: Mapping[str, str]) -> ndarray:
    """Short texts by name as one array, to be kept among others."""
    return np.frombuffer(json.dumps(dict(values), sort_keys=True).encode(), dtype=np.uint8)


def as_texts(array: ndarray) -> dict[str, str]:
    """The inverse of ``as_array``."""
    return dict(json.loads(array.tobytes()))


def strip_prefix(values: Mapping[str, T], prefix: str) -> dict[str, T]:
    """The values whose names start with ``prefix``, under the rest of their names."""
    return {n.removeprefix(prefix): v for n, v in values.items() if n.startswith(prefix)}


def _digest(said: str, arrays: Mapping[str, ndarray]) -> str:
    summed = hashlib.sha256(said.encode())
    for name, values in sorted(arrays.items()):
        summed.update(f"{name} {values.dtype.str} {values.shape}".encode())
        summed.update(np.ascontiguousarray(values).tobytes())
    return summed.hexdigest()

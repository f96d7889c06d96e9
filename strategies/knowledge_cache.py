"""The server's copies of knowledge: what each client sent, and what the server sent last."""

from __future__ import annotations

import zipfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy import ndarray

from fedfuse.files import atomic_write
from fedfuse.knowledge.delta import digest
from fedfuse.knowledge.record import Knowledge
from fedfuse.knowledge.storage import from_arrays, to_arrays
from fedfuse.tracking.checkpoints import as_array, as_texts, strip_prefix


class DiskCache:
    """A ``KnowledgeCache`` with a file for each client: memory does not grow with their number.

    A file is named by its content and never changed, so that checkpoints can refer to it.

    Args:
        folder: where the files are; made when the first is written.

    Attributes:
        last_sent: knowledge that the server sent last.
        client_digests: digest of each client's copy of the server's knowledge.
    """

    def __init__(self, folder: Path) -> None:
        self.last_sent: Knowledge | None = None
        self.client_digests: dict[str, str] = {}
        self._folder = folder
        self._digests: dict[str, str] = {}
        self._named: deque[set[Path]] = deque(maxlen=2)

    def digest(self, sender: str) -> str:
        """Digest of the copy of a client's knowledge; empty for none."""
        return self._digests.get(sender, "")

    def get(self, sender: str) -> Knowledge | None:
        """The copy of a client's knowledge."""
        return self._read(sender, self._digests[sender]) if sender in self._digests else None

    def put(self, sender: str, knowledge: Knowledge) -> None:
        """Keep a client's knowledge.

        Raises:
            FedfuseError: when it cannot be written.
        """
        self._digests[sender] = digest(knowledge)
        with (
            atomic_write(self._path(sender, self._digests[sender])) as scratch,
            scratch.open("wb") as file,
        ):
            np.savez(file, allow_pickle=False, **to_arrays(knowledge))

    def state(self) -> dict[str, ndarray]:
        """Arrays for a checkpoint; files that neither it nor the last one names are removed."""
        self._named.append({self._path(*item) for item in self._digests.items()})
        named = set().union(*self._named)
        for path in self._folder.glob("*.npz"):
            if path not in named:
                path.unlink()
        last_sent = to_arrays(self.last_sent) if self.last_sent else {}
        return {
            **{f"last-sent/{name}": value for name, value in last_sent.items()},
            "received": as_array(self._digests),
            "client-digests": as_array(self.client_digests),
        }

    def load(self, state: Mapping[str, ndarray]) -> None:
        """Go on where ``state`` was taken; copies that are missing or damaged are left out."""
        if last_sent := strip_prefix(state, "last-sent/"):
            self.last_sent = from_arrays(last_sent)
        self.client_digests = as_texts(state["client-digests"])
        received = as_texts(state["received"])
        self._digests = {c: wanted for c, wanted in received.items() if self._is_whole(c, wanted)}
        self._named.append({self._path(*item) for item in self._digests.items()})

    def _is_whole(self, sender: str, wanted: str) -> bool:
        try:
            return digest(self._read(sender, wanted)) == wanted
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return False

    def _read(self, sender: str, wanted: str) -> Knowledge:
        with np.load(self._path(sender, wanted), allow_pickle=False) as arrays:
            return from_arrays(arrays)

    def _path(self, sender: str, wanted: str) -> Path:
        return self._folder / f"{sender}-{wanted[:32]}.npz"

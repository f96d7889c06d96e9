"""What the server holds of each client's knowledge, so that a client tells only what changed."""

from __future__ import annotations

import zipfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedfuse.files import atomic_write
from fedfuse.knowledge.delta import digest
from fedfuse.knowledge.record import Knowledge
from fedfuse.knowledge.storage import from_arrays, to_arrays


class Held:
    """A file for each client: memory does not grow with their number.

    A file is named by its content and never changed, so that checkpoints can refer to it.

    Args:
        folder: where the files are; made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._digests: dict[str, str] = {}
        self._named: deque[set[Path]] = deque(maxlen=2)

    def digest(self, client: str) -> str:
        """Of what is held; empty for nothing."""
        return self._digests.get(client, "")

    def get(self, client: str) -> Knowledge | None:
        """What the client told, round after round."""
        return self._read(client, self._digests[client]) if client in self._digests else None

    def put(self, client: str, knowledge: Knowledge) -> None:
        """Keep what the client has told.

        Raises:
            FedfuseError: when it cannot be written.
        """
        self._digests[client] = digest(knowledge)
        with (
            atomic_write(self._path(client, self._digests[client])) as scratch,
            scratch.open("wb") as file,
        ):
            np.savez(file, allow_pickle=False, **to_arrays(knowledge))

    def state(self) -> dict[str, str]:
        """Digests by client, for a checkpoint; files that neither it nor the last one names go."""
        self._named.append({self._path(*item) for item in self._digests.items()})
        named = set().union(*self._named)
        for path in self._folder.glob("*.npz"):
            if path not in named:
                path.unlink()
        return dict(self._digests)

    def load(self, digests: Mapping[str, str]) -> None:
        """Go on where ``state`` was taken; what is missing or damaged is not held any more."""
        self._digests = {c: wanted for c, wanted in digests.items() if self._is_whole(c, wanted)}
        self._named.append({self._path(*item) for item in self._digests.items()})

    def _is_whole(self, client: str, wanted: str) -> bool:
        try:
            return digest(self._read(client, wanted)) == wanted
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return False

    def _read(self, client: str, wanted: str) -> Knowledge:
        with np.load(self._path(client, wanted), allow_pickle=False) as arrays:
            return from_arrays(arrays)

    def _path(self, client: str, wanted: str) -> Path:
        return self._folder / f"{client}-{wanted[:32]}.npz"

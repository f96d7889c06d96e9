"""What the server holds of each client's knowledge, so that a client tells only what changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedfuse.knowledge.record import Knowledge
from fedfuse.knowledge.storage import from_arrays, to_arrays
from fedfuse.knowledge.update import digest


class Held:
    """A file for each client: memory does not grow with their number.

    Args:
        folder: where the files are; made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._digests: dict[str, str] = {}

    def digest(self, client: str) -> str:
        """Of what is held; empty for nothing."""
        return self._digests.get(client, "")

    def get(self, client: str) -> Knowledge | None:
        """What the client told, round after round."""
        if client not in self._digests:
            return None
        with np.load(self._path(client), allow_pickle=False) as arrays:
            return from_arrays(arrays)

    def put(self, client: str, knowledge: Knowledge) -> None:
        """Keep what the client has told."""
        self._folder.mkdir(parents=True, exist_ok=True)
        scratch = self._path(client).with_suffix(".new")
        with scratch.open("wb") as file:
            np.savez(file, allow_pickle=False, **to_arrays(knowledge))
        scratch.replace(self._path(client))
        self._digests[client] = digest(knowledge)

    def _path(self, client: str) -> Path:
        return self._folder / f"{client}.npz"

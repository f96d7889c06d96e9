"""A client's persistent state, and the copy of it that outlives the run's processes.

``Context.state`` lives as long as Flower's node and run. A run that is resumed after its server was
killed is a new one to Flower, and begins with empty states; so does a node that was restarted. So a
client also writes its state into the run folder on its own machine, after each message that
changed it, a file per round.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from flwr.app import ConfigRecord, RecordDict

from fedfuse.errors import FedfuseError
from fedfuse.flower.messages import (
    RequestContext,
    arrays_to_record,
    record_to_arrays,
)
from fedfuse.tracking.checkpoints import Checkpoint, Checkpoints

_RUN = "run"
# The server goes on from its last round or, where that is damaged, from the one before; a client
# may have been in the round after.
KEPT = 3


class ClientState:
    """A client's state during one message.

    Args:
        state: ``Context.state``; brought to what the message expects.
        folder: this client's folder in the run folder on its machine.
        facts: partition and model, which a state on the disk must have been written with.
        request_context: run and round of the message.
        after: at registration, the last round that the server has finished, -1 for none; the state
            is restored to it.

    Raises:
        FedfuseError: for a message of an earlier round than the state, and a state on the disk that
            another kind of client wrote.
    """

    def __init__(
        self,
        state: RecordDict,
        folder: Path,
        facts: dict[str, str],
        request_context: RequestContext,
        after: int | None = None,
    ) -> None:
        self.state, self.request_context = state, request_context
        self._folder, self._facts = folder / "state", {**facts, "run": request_context.id}
        self._files = Checkpoints(self._folder, KEPT)
        if after is not None:
            state.clear()
            self._own_the_folder()
            self._files.delete_after(after)
        new = _RUN not in state
        if new:
            state[_RUN] = ConfigRecord({"round": -1, "kept": 0})
        if new or self._is_behind():
            self._restore()
        now = int(state.config_records[_RUN]["round"])  # type: ignore[arg-type]
        if request_context.round < now:
            raise FedfuseError(
                f"a message of round {request_context.round} came late; expected at least "
                f"round {now}, where this client is"
            )
        self._before = dict(state)

    @property
    def damaged(self) -> list[str]:
        """Files that could not be read."""
        return self._files.damaged

    @property
    def round(self) -> int:
        """Round of the last message that changed the state; -1 for none."""
        return int(self.state.config_records[_RUN]["round"])  # type: ignore[arg-type]

    def save(self) -> None:
        """Write the copy on the disk, if the message changed the state."""
        before = self._before
        if all(self.state.get(key) is before.get(key) for key in {*self.state, *before}):
            return
        kept = self._kept() + 1
        self.state[_RUN] = ConfigRecord({"round": self.request_context.round, "kept": kept})
        arrays = {
            f"{name}|{key}": value
            for name, record in self.state.array_records.items()
            for key, value in record_to_arrays(record).items()
        }
        texts = {
            name: dict(record) for name, record in self.state.config_records.items() if name != _RUN
        }
        empty = [name for name, record in self.state.array_records.items() if not record]
        facts = {**self._facts, "texts": texts, "empty": empty, "kept": kept}
        self._files.save(Checkpoint(self.request_context.round, arrays, facts))

    def _kept(self) -> int:
        """Number of times that the state was saved."""
        return int(self.state.config_records[_RUN]["kept"])  # type: ignore[arg-type]

    def _is_behind(self) -> bool:
        """Whether the copy on the disk is newer, as after a process that was killed before Flower
        had stored ``Context.state``.
        """
        facts = self._files.peek(self.request_context.round)
        return facts.get("run") == self.request_context.id and facts["kept"] > self._kept()

    def _restore(self) -> None:
        """Load the newest state on the disk that is no later than the message, if it is newer."""
        found = self._files.latest(self.request_context.round)
        if found is None or found.facts["run"] != self.request_context.id:
            return
        if found.facts["kept"] <= self._kept():  # What is newer is damaged.
            return
        for name, mine in self._facts.items():
            if found.facts[name] != mine:
                raise FedfuseError(
                    f"{self._folder}: {name}: expected {mine!r}, got {found.facts[name]!r}"
                )
        self.state.clear()
        arrays: dict[str, dict[str, object]] = {name: {} for name in found.facts["empty"]}
        for key, value in found.arrays.items():
            name, _, inner = key.partition("|")
            arrays.setdefault(name, {})[inner] = value
        for name, record in arrays.items():
            self.state[name] = arrays_to_record(record)  # type: ignore[arg-type]
        for name, values in found.facts["texts"].items():
            self.state[name] = ConfigRecord(values)
        self.state[_RUN] = ConfigRecord({"round": found.round, "kept": found.facts["kept"]})

    def _own_the_folder(self) -> None:
        """Remove what an earlier run of the same name left on this machine."""
        found = self._files.latest()
        if found is None or found.facts.get("run") != self.request_context.id:
            shutil.rmtree(self._folder, ignore_errors=True)

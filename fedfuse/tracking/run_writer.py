"""Writes a run folder: config.json, and one JSON line per measurement; ``tracking.run`` reads it.

Lines are appended whole, JSON files are replaced atomically, and every run gets a folder of its
own, so a killed run leaves nothing that a later one trips on. A resumed one keeps its folder.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedfuse.algorithms.effort import Effort
from fedfuse.errors import FedfuseError, check
from fedfuse.evaluation.scoring import Score
from fedfuse.files import append_line, atomic_write, sync
from fedfuse.tracking.json_fields import read_object
from fedfuse.tracking.line_files import FILES, HISTORY, MEASUREMENTS
from fedfuse.tracking.logs import now
from fedfuse.tracking.records import (
    AcceptanceLine,
    Event,
    GateLoss,
    MessageLine,
    Metric,
    TeacherShare,
    TrainingLine,
)

PACKAGES = ("fedfuse", "flwr", "torch", "transformers", "peft", "ray", "numpy", "tokenizers")
Listener = Callable[[str, Mapping[str, Any]], None]

# Environment variable with the id that the next run shall have: whoever starts it in another
# process finds its folder by it.
RUN_ID = "FEDFUSE_RUN_ID"


class RunWriter:
    """The folder of one run, while it runs."""

    def __init__(self, output: Path, name: str, config: Mapping[str, Any]) -> None:
        """Make ``output/name``, or ``output/name-2`` and so on where that exists.

        Raises:
            FedfuseError: when the folder cannot be made.
        """
        self.folder = _new_folder(output, name)
        self._listeners: list[Listener] = []
        self._about: dict[str, Any] = {
            "id": os.environ.get(RUN_ID) or new_id(),
            "config": dict(config),
            "seed": config.get("seed"),
            "versions": versions(),
            "commit": commit(),
            "status": "running",
            "models": {},
            "adapters": {},
            "domains": [],
            "names": {},
            "own_domain": {},
            "floor": None,
            "content": {},
        }
        self.describe()

    @classmethod
    def reopen(cls, folder: Path) -> RunWriter:
        """Go on writing a run that was cut off.

        Raises:
            FedfuseError: for a folder that holds no run, or one that cannot go on.
        """
        found = read_object(folder / "config.json")
        cut_off = found.values.get("status") != "finished"
        check(str(folder), "one that has finished", "a run that was cut off", cut_off)
        found.text("id")
        writer = cls.__new__(cls)
        writer.folder, writer._about, writer._listeners = folder, found.values, []
        return writer

    @property
    def id(self) -> str:
        """Random id, which tells this run from others of its name."""
        return str(self._about["id"])

    @property
    def models(self) -> dict[str, str]:
        """Base models that are known so far, by participant."""
        return dict(self._about["models"])

    @property
    def nodes(self) -> int:
        """Largest number of nodes so far."""
        return int(self._about.get("nodes", 0))

    @property
    def config(self) -> dict[str, Any]:
        """Run config that the run began with, flat."""
        return dict(self._about["config"])

    def describe(self, **facts: Any) -> None:
        """Set facts in config.json: models, domains, names, own_domain, floor, status, nodes.

        Raises:
            FedfuseError: when it cannot be written.
        """
        self._about |= facts
        with atomic_write(self.folder / "config.json") as scratch:
            scratch.write_text(json.dumps(self._about, indent=1, sort_keys=True) + "\n")

    def add(self, **facts: Mapping[str, str]) -> None:
        """Add to mappings in config.json: models, adapters, names, own_domain."""
        about = self._about
        self.describe(**{name: {**about.get(name, {}), **new} for name, new in facts.items()})

    def same_content(self, **digests: str) -> None:
        """Write down digests of data, models and tokenizers; compare those that are known.

        Raises:
            FedfuseError: naming what is not what the run began with.
        """
        known: dict[str, str] = self._about.get("content", {})
        other = sorted(
            name for name, digest in digests.items() if known.get(name, digest) != digest
        )
        named = " and ".join(name.replace("_", " ") for name in other)
        check(str(self.folder), f"changed ones: {named}", "what the run began with", not other)
        self.describe(content={**known, **digests})

    def listen(self, listener: Listener) -> None:
        """Call ``listener`` with each line: its file's name, or ``progress``, and its values."""
        self._listeners.append(listener)

    def progress(self, **facts: str | int) -> None:
        """Pass progress to log and listeners: round, phase, connected clients, last checkpoint."""
        now(**facts)
        self._notify("progress", facts)

    def sizes(self) -> dict[str, int]:
        """Bytes of each file of measurements, all of them on the disk."""
        paths = [self.folder / name for name in MEASUREMENTS.values()]
        found = [path for path in paths if path.exists()]
        for path in found:
            sync(path)
        return {path.name: path.stat().st_size for path in found}

    def cut(self, sizes: Mapping[str, int]) -> None:
        """Cut measurements back to earlier ``sizes``, and a torn line off the other files."""
        for name in FILES.values():
            path = self.folder / name
            if path.exists():
                whole = path.read_bytes().rfind(b"\n") + 1
                os.truncate(path, whole if name in HISTORY.values() else sizes.get(name, 0))

    def write(self, *lines: Any) -> None:
        """Append lines, of the kinds that ``line_files`` lists, to their files.

        Raises:
            FedfuseError: for a domain that the run's data does not have, or a share outside [0, 1];
                no line is written then.
        """
        for line in lines:
            self._check(line)
        for line in lines:
            name, values = FILES[type(line)], asdict(line)
            for unknown in ("noise", "normalized_accuracy"):
                if values.get(unknown, 0) is None:
                    del values[unknown]
            append_line(self.folder / name, json.dumps(values))
            self._notify(name, values)

    def event(self, server_round: int, kind: str, client: str = "", detail: str = "") -> None:
        """Write an event; see ``records.EVENTS``."""
        self.write(Event(server_round, kind, client, detail))

    def scores(
        self, stage: str, server_round: int, model: str, scores: Mapping[str, Score]
    ) -> None:
        """Write a model's scores by domain."""
        of_model = partial(Metric, stage, server_round, model)
        self.write(
            *(
                of_model(
                    domain,
                    score.loss,
                    score.accuracy,
                    score.samples,
                    score.noise,
                    score.normalized_accuracy,
                )
                for domain, score in scores.items()
            )
        )

    def training(
        self, stage: str, server_round: int, model: str, phase: str, effort: Effort
    ) -> None:
        """Write what training took."""
        self.write(TrainingLine(stage, server_round, model, phase, *astuple(effort)))

    def message(
        self,
        server_round: int,
        phase: str,
        client: str,
        *,
        sent_bytes: int = 0,
        received_bytes: int = 0,
        seconds: float = 0.0,
        error: str | None = None,
    ) -> None:
        """Write what a message cost; bytes that the server sent, and got."""
        costs = sent_bytes, received_bytes, round(seconds, 3)
        self.write(MessageLine(server_round, phase, client, *costs, error))

    def teacher_shares(
        self, server_round: int, direction: str, model: str, shares: Mapping[tuple[str, str], float]
    ) -> None:
        """Write the shares of a model's teachers by (domain, teacher)."""
        of_model = partial(TeacherShare, server_round, direction, model)
        self.write(*(of_model(*key, share) for key, share in shares.items()))

    def gate_loss(self, server_round: int, model: str, before: float, after: float) -> None:
        """Write the losses of a model's gate; see ``GateLoss``."""
        self.write(GateLoss(server_round, model, before, after))

    def acceptance(
        self, server_round: int, model: str, *, keep: bool, changes: Mapping[str, float]
    ) -> None:
        """Write the result of an acceptance test; see ``AcceptanceLine``."""
        self.write(AcceptanceLine(server_round, model, keep, dict(changes)))

    def _check(self, line: Any) -> None:
        domains: list[str] = []
        if isinstance(line, Metric | TeacherShare):
            domains = [line.domain]
        elif isinstance(line, AcceptanceLine):
            domains = sorted(filter(None, line.changes))
        if known := self._about["domains"]:
            for domain in domains:
                check("domain", repr(domain), f"one of {', '.join(known)}", domain in known)
        if isinstance(line, TeacherShare):
            check("share", repr(line.share), "0 to 1", 0 <= line.share <= 1)

    def _notify(self, kind: str, line: Mapping[str, Any]) -> None:
        for listener in self._listeners:
            listener(kind, line)


def new_id() -> str:
    """A random id of a run."""
    return secrets.token_hex(8)


def find_folder(output: Path, run_id: str) -> Path:
    """Folder of the run with an id.

    Raises:
        FedfuseError: when there is none.
    """
    for about in output.glob("*/config.json"):
        if read_object(about).values.get("id") == run_id:
            return about.parent
    raise FedfuseError(f"output {str(output)!r}: expected the folder of run {run_id}, got none")


def free_folder(output: Path, name: str) -> Path:
    """``output/name``, or the first of ``output/name-2``, ``-3``, ... that does not exist yet.

    Raises:
        FedfuseError: for a name that is no plain folder name, or an output that is no folder.
    """
    check("output", repr(str(output)), "a folder", output.is_dir() or not output.exists())
    good = name and name not in (".", "..") and Path(name).name == name
    check("name", repr(name), "a folder name without separators", good)
    number = 1
    while (folder := output / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return folder


def _new_folder(output: Path, name: str) -> Path:
    while True:
        folder = free_folder(output, name)
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:  # another run was quicker, or the output is no folder
            if not output.is_dir():
                raise FedfuseError(f"output: expected a folder, got {str(output)!r}") from None
        except OSError as error:
            raise FedfuseError(f"output = {str(output)!r}: {error.strerror}") from None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def commit() -> str:
    """The checkout's commit, with ``-dirty`` where files differ from it; "" outside a checkout."""
    given = os.environ.get("FEDFUSE_COMMIT")
    if given is not None:
        return given
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""

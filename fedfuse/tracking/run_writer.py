"""Write a run folder: config, one JSON line per measurement, adapters. Read by ``report.reading``.

Lines are appended whole, JSON files are replaced atomically, and every run gets a folder of its
own, so a run that is killed leaves nothing that a later one trips on. One that is resumed goes on
in the same folder.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedfuse.errors import FedfuseError
from fedfuse.evaluation.scoring import Score
from fedfuse.files import append_line, atomic_write, sync
from fedfuse.tracking.feddtpt_records import AggregationLine, PromptLine
from fedfuse.tracking.json_fields import read_object
from fedfuse.tracking.logs import now

PACKAGES = ("fedfuse", "flwr", "torch", "transformers", "peft", "ray", "numpy", "tokenizers")
# What a round found out: a resumed run finds it out again. (What messages cost was spent.)
FINDINGS = (
    *("metrics.jsonl", "teacher_shares.jsonl", "gates.jsonl", "acceptance.jsonl"),
    *("prompts.jsonl", "aggregations.jsonl"),
)
HISTORY = ("messages.jsonl", "events.jsonl")
Listener = Callable[[str, Mapping[str, Any]], None]


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
            "id": secrets.token_hex(8),
            "config": dict(config),
            "seed": config.get("seed"),
            "versions": versions(),
            "commit": commit(),
            "status": "running",
            "models": {},
            "domains": [],
            "names": {},
            "own_domain": {},
            "floor": None,
        }
        self.describe()

    @classmethod
    def reopen(cls, folder: Path) -> RunWriter:
        """Go on writing a run that was cut off.

        Raises:
            FedfuseError: for a folder that holds no run, or one that cannot go on.
        """
        found = read_object(folder / "config.json")
        if found.values.get("status") == "finished":
            raise FedfuseError(
                f"{folder}: the run has finished; allowed: one that was cut off (or fedfuse report)"
            )
        found.text("id")
        writer = cls.__new__(cls)
        writer.folder, writer._about, writer._listeners = folder, found.values, []
        return writer

    @property
    def id(self) -> str:
        """What tells this run from any other of its name."""
        return str(self._about["id"])

    @property
    def models(self) -> dict[str, str]:
        """The base models that are known so far, by participant."""
        return dict(self._about["models"])

    @property
    def nodes(self) -> int:
        """How many nodes there were at most."""
        return int(self._about.get("nodes", 0))

    @property
    def config(self) -> dict[str, Any]:
        """The run config that the run began with, flat."""
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
        """Add to mappings in config.json: models, names, own_domain."""
        self.describe(**{name: {**self._about[name], **new} for name, new in facts.items()})

    def listen(self, listener: Listener) -> None:
        """Call ``listener`` with each line from now on: its file, or ``progress``, and values."""
        self._listeners.append(listener)

    def progress(self, **what: str | int) -> None:
        """Say what the run is at, to the log and to who listens: round, phase, clients that are
        there, the last checkpoint.
        """
        now(**what)
        self._tell("progress", what)

    def sizes(self) -> dict[str, int]:
        """Bytes of each file of findings, all of them on the disk."""
        found = {name: self.folder / name for name in FINDINGS if (self.folder / name).exists()}
        for path in found.values():
            sync(path)
        return {name: path.stat().st_size for name, path in found.items()}

    def cut(self, sizes: Mapping[str, int]) -> None:
        """Back to an earlier state: findings as they were, of the rest no line that is torn."""
        for name in (*FINDINGS, *HISTORY):
            path = self.folder / name
            if path.exists():
                whole = path.read_bytes().rfind(b"\n") + 1
                os.truncate(path, sizes.get(name, 0) if name in FINDINGS else whole)

    def event(self, server_round: int, kind: str, client: str = "", detail: str = "") -> None:
        """One line in events.jsonl: something out of the ordinary; see ``records.EVENTS``."""
        line = {"round": server_round, "event": kind, "client": client, "detail": detail}
        self._append("events.jsonl", line)

    def scores(
        self, stage: str, server_round: int, model: str, scores: Mapping[str, Score]
    ) -> None:
        """One line per domain in metrics.jsonl.

        Raises:
            FedfuseError: for a domain that the run's data does not have.
        """
        self._check_domains(scores)
        for domain, score in scores.items():
            line = {"stage": stage, "round": server_round, "model": model, "domain": domain}
            values = {"loss": score.loss, "accuracy": score.accuracy, "samples": score.samples}
            noise = {} if score.noise is None else {"noise": score.noise}
            self._append("metrics.jsonl", line | values | noise)

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
        """One line in messages.jsonl; bytes that the server sent, and got."""
        self._append(
            "messages.jsonl",
            {
                "round": server_round,
                "phase": phase,
                "client": client,
                "sent_bytes": sent_bytes,
                "received_bytes": received_bytes,
                "seconds": round(seconds, 3),
                "error": error,
            },
        )

    def teacher_shares(
        self, server_round: int, direction: str, model: str, shares: Mapping[tuple[str, str], float]
    ) -> None:
        """One line per (domain, teacher) in teacher_shares.jsonl.

        Raises:
            FedfuseError: for a domain that the run's data does not have, or a share outside [0, 1].
        """
        self._check_domains([domain for domain, _ in shares])
        wrong = [share for share in shares.values() if not 0 <= share <= 1]
        if wrong:
            raise FedfuseError(f"share = {wrong[0]!r}: allowed: 0 to 1")
        for (domain, teacher), share in shares.items():
            line = {"round": server_round, "direction": direction, "model": model}
            self._append(
                "teacher_shares.jsonl",
                line | {"domain": domain, "teacher": teacher, "share": share},
            )

    def gate_loss(self, server_round: int, model: str, before: float, after: float) -> None:
        """One line in gates.jsonl: what a model's gate minimises, on samples that it did
        not learn from, before and after the round's learning, nats per label row.
        """
        line = {"round": server_round, "model": model, "before": before, "after": after}
        self._append("gates.jsonl", line)

    def acceptance(
        self, server_round: int, model: str, *, keep: bool, changes: Mapping[str, float]
    ) -> None:
        """One line in acceptance.jsonl: whether a model kept what a phase taught it, and the change
        of its loss on each domain of the held-out set, nats per byte.

        Raises:
            FedfuseError: for a domain that the run's data does not have.
        """
        self._check_domains(domain for domain in changes if domain)
        line = {"round": server_round, "model": model, "keep": keep, "changes": dict(changes)}
        self._append("acceptance.jsonl", line)

    def prompt(self, line: PromptLine) -> None:
        """One line in prompts.jsonl."""
        self._append("prompts.jsonl", asdict(line))

    def aggregation(self, line: AggregationLine) -> None:
        """One line in aggregations.jsonl."""
        self._append("aggregations.jsonl", asdict(line))

    def _check_domains(self, domains: Iterable[str]) -> None:
        known = self._about["domains"]
        unknown = sorted(set(domains) - set(known)) if known else []
        if unknown:
            raise FedfuseError(f"domain {unknown[0]!r}: allowed: {', '.join(known)}")

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        append_line(self.folder / name, json.dumps(line))
        self._tell(name, line)

    def _tell(self, kind: str, line: Mapping[str, Any]) -> None:
        for listener in self._listeners:
            listener(kind, line)


def free_folder(output: Path, name: str) -> Path:
    """``output/name``, or the first of ``output/name-2``, ``-3``, ... that does not exist yet.

    Raises:
        FedfuseError: for a name that is no plain folder name, or an output that is no folder.
    """
    if output.exists() and not output.is_dir():
        raise FedfuseError(f"output = {str(output)!r}: allowed: a folder")
    if not name or name in (".", "..") or Path(name).name != name:
        raise FedfuseError(f"name = {name!r}: allowed: a folder name without separators")
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
                raise FedfuseError(f"output = {str(output)!r}: allowed: a folder") from None
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

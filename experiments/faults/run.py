"""One small run, among failures or not, and what it must come to."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from flwr.common.constant import SUPERLINK_NODE_ID

from clients.app import app as client_app
from experiments.faults.account import unfinished
from experiments.faults.fleet import Fleet, Killed, Place, Schedule
from fedfuse.config.run_config import Scalar
from fedfuse.flower import messages
from fedfuse.simulation.in_process import new_context
from fedfuse.tracking.checkpoints import Checkpoints
from fedfuse.tracking.run import SERVER, RunFolder, read_run
from strategies.app import app as server_app

# Enough of everything for each phase to do something; a run takes seconds.
SMALL: Mapping[str, Scalar] = {
    "strategy": "fedmkt",
    "rounds": 3,
    "baselines": False,
    "data.domains": 2,
    "data.partition": "iid",
    "data.private": 24,
    "data.public": 8,
    "data.holdout": 0,
    "data.blind": 4,
    "data.test": 1,
    "data.questions": 1,
    **{f"{side}.lora-rank": 4 for side in ("server", "clients")},
    **{f"{side}.device": "cpu" for side in ("server", "clients")},
    **{f"{phase}.steps": 2 for phase in ("local", "server-distill", "client-distill", "gate")},
    **{f"{phase}.batch-size": 4 for phase in ("local", "server-distill", "client-distill")},
    "gate.folds": 2,
    "knowledge.k": 8,
    "knowledge.delta-threshold": 0.01,
}
# A client that hangs is waited for as long; nobody else takes time, as all are asked in turn.
DEADLINE = 0.2
HONEST = ("", "twice", "memory")
FINDINGS = ("metrics", "teacher_shares", "gates")


def outcome(folder: Path) -> dict[str, str]:
    """Checksums of all that a run found out: every adapter, every measurement."""
    files = [*folder.rglob("adapter_model.safetensors"), *(folder / f"{n}.jsonl" for n in FINDINGS)]
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(files)
        if file.exists()
    }


def run_among(schedule: Schedule, config: Mapping[str, Scalar], clients: int) -> list[Fleet]:
    """A run that is resumed as often as its server is killed; the fleet of each part of it.

    ``config`` is the whole run config, flat; its run folder does not exist yet.
    """
    folder = Path(str(config["output"])) / str(config["name"])
    nodes = [{"partition-id": i, "num-partitions": clients} for i in range(clients)]
    fleets: list[Fleet] = []
    while True:
        first = max(Checkpoints(folder / SERVER / "checkpoints").rounds(), default=-1) + 1
        given = {**config, **({"resume": str(folder)} if fleets else {})}
        fleets.append(Fleet(schedule, client_app, nodes, given, first))
        context = new_context(fleets[-1].run.run_id, SUPERLINK_NODE_ID, {}, given)
        try:
            # Drawing takes longer than such a run.
            with patch("strategies.app.save_headline"), patch("strategies.app.write_report"):
                server_app(fleets[-1], context)
            return fleets
        except Killed as killed:
            left = tuple(kill for kill in schedule.kills if kill != killed.args)
            schedule = replace(schedule, kills=left)


def lapses(folder: Path, fleets: list[Fleet]) -> list[str]:
    """What a run should have done and did not; nothing, if all is well."""
    run = read_run(folder)
    phase = messages.EVALUATE
    answered = {str(c) for fleet in fleets for _, kind, c in fleet.delivered if kind == phase}
    found = unfinished(run, sorted({SERVER, *answered})) + _message_log(run, fleets)
    for fleet in fleets:
        for place, fault in fleet.delivered.items():
            found += _reply(run, place, fault)
    return found


def _message_log(run: RunFolder, fleets: list[Fleet]) -> list[str]:
    """A line for every message, and none for any other."""
    asked: Counter[tuple[int, str]] = Counter()
    for fleet in fleets:
        for (number, phase, _), times in fleet.asked.items():
            asked[number, phase] += times
    written = Counter((line.round, line.phase) for line in run.messages if line.sent_bytes)
    return [
        f"round {number}, {phase}: {asked[number, phase]} messages, {written[number, phase]} lines"
        for number, phase in sorted(asked.keys() | written.keys())
        if asked[number, phase] != written[number, phase]
    ]


def _reply(run: RunFolder, place: Place, fault: str) -> list[str]:
    """What came of one reply: a valid one counts, no other does."""
    if fault not in HONEST:
        return []
    number, phase, client = place
    name, shares = str(client), [x for x in run.teacher_shares if x.round == number]
    errors = [
        line.error
        for line in run.messages
        if (line.round, line.phase, line.client) == (number, phase, name)
    ]
    if None not in errors or any((error or "").startswith("refused") for error in errors):
        return [f"{place}: a valid reply was lost"]
    used = {
        messages.LOCAL: ("up", name) in {(x.direction, x.teacher) for x in shares},
        messages.DISTILL: ("down", name) in {(x.direction, x.model) for x in shares},
        messages.EVALUATE: (number, name) in {(x.round, x.model) for x in run.metrics},
    }
    return [] if used.get(phase, True) else [f"{place}: a valid reply was not used"]

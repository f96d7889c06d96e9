"""What a run on real processes should have done and did not, by what was done to its clients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from fedfuse.flower import messages
from fedfuse.flower.piggyback import JOINT
from fedfuse.tracking.records import MessageLine
from fedfuse.tracking.run import SERVER, RunFolder, read_run


@dataclass(slots=True)
class Absence:
    """A client that was not well, by lines of messages.jsonl."""

    client: str
    begin: int  # how many before
    end: int | None = None  # how many when it had handed over a reply again; None: not yet


def lapses(folder: Path, clients: int, absences: list[Absence]) -> list[str]:
    """Nothing, if all is well: the run is finished, every adapter saved, every message noted, and
    every reply of a client that was well was answered and used.
    """
    run, names = read_run(folder), [str(number) for number in range(clients)]
    found = unfinished(run, [SERVER, *names]) + _missing(run, names)
    for name in names:
        mine = [(n, line) for n, line in enumerate(run.messages) if line.client == name]
        found += _unheard(mine, [absence for absence in absences if absence.client == name])
        found += _unused(run, name, [line for _, line in mine])
    return found


def unfinished(run: RunFolder, models: Iterable[str]) -> list[str]:
    """What the end of a run lacks: its status, and adapters."""
    found = [] if run.status == "finished" else [f"the run is {run.status}"]
    saved = {path.parent.parent.name for path in run.folder.rglob("adapter_model.safetensors")}
    return found + [f"no adapter of {model}" for model in models if model not in saved]


def _missing(run: RunFolder, names: list[str]) -> list[str]:
    """Phases without a line for a client that is registered."""
    joint = run.config.get("piggyback")
    phases = [JOINT] if joint else [messages.LOCAL, messages.DISTILL, messages.EVALUATE]
    known: dict[str, int] = {}
    for number, line in enumerate(run.messages):
        if line.phase == messages.REGISTER and not line.error:
            known.setdefault(line.client, number)
    found = []
    for where in product(range(1, int(run.config["rounds"]) + 1), phases):
        lines = [n for n, line in enumerate(run.messages) if (line.round, line.phase) == where]
        asked = {name for name in names if lines and known.get(name, lines[0]) < lines[0]}
        left = asked - {run.messages[n].client for n in lines}
        if left or not lines:
            who = ", ".join(sorted(left)) or "anybody"
            found.append(f"round {where[0]}, {where[1]}: no line of {who}")
    return found


def _unheard(mine: list[tuple[int, MessageLine]], absences: list[Absence]) -> list[str]:
    """Messages that failed although the client was well, and a client that never came back.

    What it hands over first may be late, so it is well again with the first reply that is answered
    from it after.
    """
    excused: set[int] = set()
    found = []
    for absence in absences:
        after = [(n, line) for n, line in mine if absence.end is not None and n >= absence.end]
        answered = [n for n, line in after if not line.error]
        until = answered[0] if answered else len(mine) and mine[-1][0]
        excused |= {n for n, _ in mine if absence.begin <= n <= until}
        if not answered and len(after) > 1:
            found.append(f"client {absence.client} was back and not answered again")
    return found + [
        f"round {line.round}, {line.phase}: client {line.client} was well: {line.error}"
        for n, line in mine
        if line.error and n not in excused
    ]


def _unused(run: RunFolder, name: str, mine: list[MessageLine]) -> list[str]:
    """Rounds whose every message the client answered, and in which it taught nobody."""
    answered: dict[int, list[MessageLine]] = defaultdict(list)
    for line in mine:
        if line.phase in (messages.LOCAL, JOINT):
            answered[line.round].append(line)
    taught = {x.round for x in run.teacher_shares if (x.direction, x.teacher) == ("up", name)}
    return [
        f"round {number}: what client {name} knew was not used"
        for number, lines in answered.items()
        if all(not line.error for line in lines) and number not in taught
    ]

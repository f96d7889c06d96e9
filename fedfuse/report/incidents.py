"""What happened to a run: who was absent, what failed, what was resumed."""

from __future__ import annotations

from typing import NamedTuple

from fedfuse.tracking.run import SERVER, RunFolder

WORDS = {
    "resumed": "resumed",
    "damaged": "a file was damaged",
    "joined": "joined",
    "returned": "came back",
    "lost": "lost its state",
    "out-of-memory": "out of memory",
}


class EventRow(NamedTuple):
    """What happened to whom, after or in which round."""

    round: int
    name: str
    event: str
    detail: str


class AbsenceRow(NamedTuple):
    """A client and the rounds of which the server has no good reply of it at all."""

    name: str
    rounds: str


def event_rows(run: RunFolder) -> list[EventRow]:
    """Everything out of the ordinary that is no failed message, in the order it happened."""
    return [
        EventRow(item.round, run.name(item.client), WORDS[item.event], item.detail)
        for item in run.events
    ]


def absences(run: RunFolder) -> dict[str, list[int]]:
    """Rounds that a client was asked in and answered nothing of, by client."""
    asked: dict[tuple[str, int], bool] = {}
    for item in run.messages:
        if item.client != SERVER:
            key = item.client, item.round
            asked[key] = asked.get(key, False) or item.error is None
    found: dict[str, list[int]] = {}
    for (client, number), heard in asked.items():
        if not heard:
            found.setdefault(client, []).append(number)
    return found


def absence_rows(run: RunFolder) -> list[AbsenceRow]:
    """The same as text, in the order of the clients."""
    found = absences(run)
    order = [*run.clients, *sorted(found.keys() - set(run.clients))]
    return [
        AbsenceRow(run.name(client), ", ".join(map(str, sorted(found[client]))))
        for client in order
        if client in found
    ]

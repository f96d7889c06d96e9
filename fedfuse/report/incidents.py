"""Incidents of a run: absent clients, resumed runs, lost states."""

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
    "cut-answers": "answers were cut off",
}


class EventRow(NamedTuple):
    """One event, after or in a round."""

    round: int
    name: str
    event: str
    detail: str


class AbsenceRow(NamedTuple):
    """A client and the rounds without any good reply of it."""

    name: str
    rounds: str


def event_rows(run: RunFolder) -> list[EventRow]:
    """Everything out of the ordinary that is no failed message, in order."""
    return [
        EventRow(item.round, run.name(item.client), WORDS[item.event], item.detail)
        for item in run.events
    ]


def absences(run: RunFolder) -> dict[str, list[int]]:
    """Rounds in which a client was asked and gave no good reply, by client."""
    asked = dict.fromkeys((m.client, m.round) for m in run.messages if m.client != SERVER)
    answered = {(m.client, m.round) for m in run.messages if m.error is None}
    found: dict[str, list[int]] = {}
    for client, number in asked:
        if (client, number) not in answered:
            found.setdefault(client, []).append(number)
    return found


def absence_rows(run: RunFolder) -> list[AbsenceRow]:
    """``absences`` as text, in the order of the clients."""
    found = absences(run)
    order = [*run.clients, *sorted(found.keys() - set(run.clients))]
    return [
        AbsenceRow(run.name(client), ", ".join(map(str, sorted(found[client]))))
        for client in order
        if client in found
    ]

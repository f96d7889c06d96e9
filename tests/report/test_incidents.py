"""What happened to a run, as its report tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedfuse.errors import FedfuseError
from fedfuse.report.html import render
from fedfuse.report.incidents import absence_rows, absences, event_rows
from fedfuse.tracking.records import EVENTS
from fedfuse.tracking.run import read_run
from tests.report.folders import write_folder, write_lines


def exchange(number: int, phase: str, client: str, error: str | None = None) -> dict[str, object]:
    line = {"round": number, "phase": phase, "client": client, "sent_bytes": 1}
    return line | {"received_bytes": 0, "seconds": 0.1, "error": error}


def event(number: int, kind: str, client: str = "1", detail: str = "") -> dict[str, object]:
    return {"round": number, "event": kind, "client": client, "detail": detail}


def test_absent_is_who_gave_no_good_reply_in_a_whole_round(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    message_log = [
        exchange(1, "train.local", "10", "late"),
        exchange(1, "evaluate", "10"),
        exchange(1, "train.local", "2", "not connected"),
        exchange(1, "evaluate", "2", "not connected"),
        exchange(3, "evaluate", "2", "not connected"),
        exchange(2, "evaluate", "2"),
        exchange(2, "evaluate", "77", "late"),
        exchange(2, "server.aggregate", "server", "broken"),
    ]
    write_lines(folder / "messages.jsonl", message_log)
    run = read_run(folder)
    assert absences(run) == {"2": [1, 3], "77": [2]}
    rows = absence_rows(run)
    assert [row.rounds for row in rows] == ["1, 3", "2"]
    assert rows[1].name == "77"


def test_every_event_has_words(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    write_lines(folder / "events.jsonl", [event(2, kind, "0", f"<{kind}>") for kind in EVENTS])
    run = read_run(folder)
    rows = event_rows(run)
    assert len({row.event for row in rows}) == len(EVENTS)
    assert {row.name for row in rows} == {run.name("0")}
    page = render(run)
    assert "What went wrong" in page
    assert "&lt;resumed&gt;" in page


def test_nothing_went_wrong(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    assert event_rows(read_run(folder)) == []
    assert "What went wrong" not in render(read_run(folder))


def test_an_unknown_event_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    write_lines(folder / "events.jsonl", [event(0, "exploded")])
    with pytest.raises(FedfuseError, match=r"events.jsonl, line 1: 'event': .* got 'exploded'"):
        read_run(folder)

"""What ``fedfuse status`` shows, of a run that goes on and of one that has ended."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fedfuse.cli.main import app
from fedfuse.cli.status import view
from fedfuse.tracking.run import read_run
from tests.report.folders import write_folder, write_lines

EVENTS = [
    {"round": 1, "event": "resumed", "client": "server", "detail": "after round 1"},
    {"round": 2, "event": "lost", "client": "3", "detail": "begins with a new adapter"},
]


def shown(folder: Path) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(view(read_run(folder)))
    return console.export_text()


def test_it_shows_who_takes_part(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "run", failing="2")
    write_lines(folder / "events.jsonl", EVENTS)
    text = shown(folder)
    assert "quickstart: finished, round 5 of 5" in text
    lines = {line.split(" / ")[0].strip(): line for line in text.splitlines()}
    assert "round 5" in lines["clinic"]
    failures = [x for x in read_run(folder).failures if x.client == "2"]
    assert lines["court"].split()[-1] == str(len(failures))
    assert "after round 1: resumed server after round 1" in text
    assert "begins with a new adapter" in text
    assert (failures[-1].error or "") in text


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "run", status="running")
    for path in folder.glob("*.jsonl"):
        path.unlink()
    assert "running, nobody has answered yet" in shown(folder)


def test_it_waits_until_the_run_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "run", status="running")
    naps = []

    def finish(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"status": "finished"}))

    monkeypatch.setattr("fedfuse.cli.status.time.sleep", finish)
    result = CliRunner().invoke(app, ["status", str(folder)])
    assert result.exit_code == 0
    assert "finished, round 5 of 5" in result.output
    assert len(naps) == 2
    (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace("finished", "running")
    )
    result = CliRunner().invoke(app, ["status", "--once", str(folder)])
    assert "running, round 5 of 5" in result.output
    assert len(naps) == 2

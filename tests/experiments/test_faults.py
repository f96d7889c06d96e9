"""Schedules of failures and a server that is killed, on little; and that a lapse would be seen."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from experiments.faults import chaos, kills
from experiments.faults.fleet import FAULTS, Fleet, draw
from experiments.faults.run import lapses, outcome
from fedfuse.tracking.run import read_run
from tests.federations import lines, tiny_builtin
from tests.report.folders import write_lines

__all__ = ["tiny_builtin"]
pytestmark = pytest.mark.usefixtures("tiny_builtin")


def test_schedules_have_everything_and_one_client_that_is_well() -> None:
    schedules = [draw(seed, 4, 3) for seed in range(50)]
    assert {fault for s in schedules for fault in s.faults.values()} == set(FAULTS)
    assert draw(3, 4, 3) == schedules[3]
    assert len({len(s.kills) for s in schedules}) == 3
    for schedule in schedules:
        troubled = {client for _, _, client in schedule.faults} | set(schedule.away)
        assert len(troubled) < 4


@pytest.mark.parametrize("seed", [4, 7, 11])
def test_a_run_among_failures_loses_nothing(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleets: list[Fleet] = []
    watched = lapses
    monkeypatch.setattr(
        chaos, "lapses", lambda folder, given: fleets.extend(given) or watched(folder, given)
    )
    cell = chaos.one(seed, tmp_path)
    assert cell["lapses"] == []
    assert cell["failed"]
    folder = tmp_path / f"chaos-{seed}"
    # The account would show it.
    place = next(p for f in fleets for p, fault in f.delivered.items() if not fault and p[0])
    message_log = lines(folder, "messages")
    ours = [
        x
        for x in message_log
        if (x["round"], x["phase"], x["client"]) == (*place[:2], str(place[2]))
    ]
    write_lines(folder / "messages.jsonl", [line for line in message_log if line not in ours])
    found = lapses(folder, fleets)
    assert f"{place}: a valid reply was lost" in found
    assert any("messages" in lapse for lapse in found)
    (folder / "server" / "adapter" / "adapter_model.safetensors").unlink()
    assert "no adapter of server" in lapses(folder, fleets)


def test_a_killed_server_is_resumed_in_another_process(tmp_path: Path) -> None:
    """Between the writing of a file and its renaming, which no exception would interrupt."""
    whole, steps = tmp_path / "fedmkt", kills.Steps()
    kills.small_run("fedmkt", whole, steps)
    point = ("return", "fedfuse/files.py:sync"), steps.counts["return", "fedfuse/files.py:sync"] - 9
    assert point[1] > 0
    cell = kills.kill_and_resume("fedmkt", tmp_path / "killed", point)
    assert cell["goes on"].startswith("after round ")
    assert outcome(tmp_path / "killed") == outcome(whole)
    assert read_run(tmp_path / "killed").status == "finished"
    drawn = [steps.draw(np.random.default_rng(seed)) for seed in range(200)]
    assert all(1 <= number <= steps.counts[event] for event, number in drawn)
    assert len({function for (_, function), _ in drawn}) > 50


def test_a_process_that_is_killed_is_told_from_one_that_fails(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert kills.in_a_process(lambda: os.kill(os.getpid(), signal.SIGKILL)) == signal.SIGKILL
    assert kills.in_a_process(lambda: None) == 0
    with pytest.raises(SystemExit, match="a run failed"):
        kills.in_a_process(lambda: print(1 / 0))
    assert "ZeroDivisionError" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["chaos", "kills", "processes"])
def test_results_are_those_of_the_committed_commands(name: str) -> None:
    path = Path(chaos.__file__).with_name(f"{name}.json")
    found = json.loads(path.read_text())
    assert found["command"].startswith(f"python -m experiments.faults.{name} ")
    if name != "kills":
        number = {"chaos": 50, "processes": 10}[name]
        assert found["summary"]["schedules"] == found["summary"]["without lapses"] == number
    else:
        assert found["summary"] == {"points": 20, "identical": 20}

"""Schedules of failures and a server that is killed, on little; and that a lapse would be seen."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from experiments.faults import chaos, kills
from experiments.faults.fleet import FAULTS, Fleet, draw
from experiments.faults.run import lapses, outcome
from fedfuse.report.reading import read_run
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
    ledger = lines(folder, "ledger")
    ours = [
        x for x in ledger if (x["round"], x["phase"], x["client"]) == (*place[:2], str(place[2]))
    ]
    write_lines(folder / "ledger.jsonl", [line for line in ledger if line not in ours])
    found = lapses(folder, fleets)
    assert f"{place}: a valid reply was lost" in found
    assert any("messages" in lapse for lapse in found)
    (folder / "server" / "adapter" / "adapter_model.safetensors").unlink()
    assert "no adapter of server" in lapses(folder, fleets)


def test_a_killed_server_is_resumed_in_another_process(tmp_path: Path) -> None:
    whole = tmp_path / "fedmkt"
    steps = kills.small_run("fedmkt", whole, kills.Steps())
    assert steps > 1000
    cell = kills.kill_and_resume("fedmkt", tmp_path / "killed", steps * 2 // 3)
    assert cell["resumed"].startswith("after round ")
    assert outcome(tmp_path / "killed") == outcome(whole)
    assert read_run(tmp_path / "killed").status == "finished"


def test_a_process_that_is_killed_is_told_from_one_that_fails() -> None:
    def dies(pipe: int) -> None:
        os.write(pipe, b"here")
        os.kill(os.getpid(), signal.SIGKILL)

    assert kills.in_a_process(dies) == (signal.SIGKILL, "here")
    assert kills.in_a_process(lambda _: None) == (0, "")

"""Failures of real processes: what is drawn, and that a lapse would be seen."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from experiments.faults import processes
from experiments.faults.account import Absence, lapses
from experiments.faults.processes import CLIENTS, KINDS, ROUNDS, draw
from fedfuse.flower.messages import DISTILL, EVALUATE, LOCAL, REGISTER
from tests.federations import federate, lines, tiny_builtin
from tests.report.folders import write_lines
from tests.strategies.test_faults import SHORT

__all__ = ["tiny_builtin"]

LINE = {
    "phase": LOCAL,
    "client": "0",
    "sent_bytes": 1,
    "received_bytes": 1,
    "seconds": 1.0,
    "error": None,
}


def test_ten_schedules_have_everything_and_one_client_that_is_well() -> None:
    plans = [draw(seed) for seed in range(10)]
    assert draw(3) == plans[3]
    assert {fault.kind for plan in plans for fault in plan.faults} == set(KINDS)
    assert {plan.piggyback for plan in plans} == {True, False}
    assert {plan.kill[0] for plan in plans} == set(range(ROUNDS))
    for plan in plans:
        assert len({fault.client for fault in plan.faults}) == 2 < CLIENTS
    counts = processes.scheduled(10)
    assert counts["server killed"] == sum(plan.kill[0] > 0 for plan in plans)
    assert sum(counts[kind] for kind in KINDS) == 20


def test_a_killed_server_is_dead_though_nobody_reaps_it(tmp_path: Path) -> None:
    """Its parent, which is Flower's, may leave it a zombie."""
    child = "import os, time; child = os.fork()\nif child: print(child, flush=True)\ntime.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
    submitted: list[str] = []
    try:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        machines = SimpleNamespace(
            folder=tmp_path,
            clients=[],
            server=lambda: server,
            submit=lambda resume: submitted.append(resume),
        )
        (tmp_path / "config.json").write_text('{"status": "running"}')
        write_lines(tmp_path / "messages.jsonl", [{**LINE, "round": 1}])
        play = processes.Play(machines, processes.FaultPlan((), (1, 0.0), piggyback=False))  # type: ignore[arg-type]
        deadline = time.monotonic() + 20
        for _ in play._kill_server(1, 0.0):
            assert time.monotonic() < deadline
        assert server.status() == psutil.STATUS_ZOMBIE
    finally:
        parent.kill()
        parent.communicate()
    assert submitted == [str(tmp_path)]


@pytest.fixture(scope="module", params=[False, True])
def whole(
    request: pytest.FixtureRequest,
    tiny_builtin: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A run that nobody disturbs."""
    keys: dict[str, Any] = {**SHORT, "rounds": 2, "piggyback": request.param}
    return federate(tmp_path_factory.mktemp("whole"), **keys)


def edited(whole: Path, to: Path, change: Callable[[dict[str, Any]], bool], error: str) -> Path:
    """A copy of the run, some lines of messages.jsonl with an error; with none, they are gone."""
    shutil.copytree(whole, to)
    message_log = [
        {**line, "error": error} if change(line) else line
        for line in lines(whole, "messages")
        if error or not change(line)
    ]
    write_lines(to / "messages.jsonl", message_log)
    return to


def last_of(client: str, whole: Path) -> dict[str, Any]:
    return [line for line in lines(whole, "messages") if line["client"] == client][-1]


def test_all_is_well(whole: Path) -> None:
    assert lapses(whole, 3, []) == []


def test_a_failure_needs_an_excuse(whole: Path, tmp_path: Path) -> None:
    message_log = lines(whole, "messages")
    mine = [n for n, line in enumerate(message_log) if line["client"] == "1"]
    at = mine[2]
    folder = edited(whole, tmp_path / "run", lambda line: line == message_log[at], "no reply")
    [found] = lapses(folder, 3, [])
    assert found.endswith("client 1 was well: no reply")
    # Not one of somebody else, of before it, or of after it was heard again.
    for absence in (Absence("0", 0), Absence("1", at + 1), Absence("1", 0, mine[1])):
        assert found in lapses(folder, 3, [absence])
    for absence in (Absence("1", at), Absence("1", mine[1], at), Absence("1", 0, at + 1)):
        assert lapses(folder, 3, [absence]) == []


def test_who_is_back_must_be_heard(whole: Path, tmp_path: Path) -> None:
    def of_one(line: dict[str, Any]) -> bool:
        return line["client"] == "1" and line["phase"] != REGISTER

    folder = edited(whole, tmp_path / "run", of_one, "no reply")
    assert lapses(folder, 3, [Absence("1", 0)]) == []
    assert lapses(folder, 3, [Absence("1", 0, 3)]) == ["client 1 was back and not answered again"]


def test_every_phase_needs_a_line(whole: Path, tmp_path: Path) -> None:
    last = last_of("2", whole)
    same = [
        line
        for line in lines(whole, "messages")
        if all(line[key] == last[key] for key in ("round", "phase", "client"))
    ]
    folder = edited(whole, tmp_path / "one", lambda line: line in same, "")
    assert lapses(folder, 3, []) == [f"round 2, {last['phase']}: no line of 2"]
    phases = (LOCAL, DISTILL, EVALUATE, "train.joint")
    folder = edited(whole, tmp_path / "all", lambda x: x["round"] == 2 and x["phase"] in phases, "")
    assert {lapse.rpartition(":")[2] for lapse in lapses(folder, 3, [])} == {" no line of anybody"}


def test_what_was_heard_must_be_used_and_adapters_saved(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    selection = [line for line in lines(folder, "teacher_shares") if line["teacher"] != "2"]
    write_lines(folder / "teacher_shares.jsonl", selection)
    assert lapses(folder, 3, []) == [
        f"round {number}: what client 2 knew was not used" for number in (1, 2)
    ]
    (folder / "clients" / "0" / "adapter" / "adapter_model.safetensors").unlink()
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**about, "status": "failed"}))
    assert lapses(folder, 3, [])[:2] == ["the run is failed", "no adapter of 0"]

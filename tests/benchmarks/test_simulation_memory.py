"""The memory benchmark measures what is there, and says what it measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import simulation_memory
from benchmarks.memory import Watch, memory_of
from benchmarks.simulation_memory import FITTED, SETTINGS, Setting, configure, make_base, table
from fedfuse.simulation import run_memory as memory
from tests.benchmarks.test_benchmarks import FRAME

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is mapped")

MB = 1_000_000
HOLD = """
import mmap, sys, time
file = open(sys.argv[1], "r+b")
pages = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
sum(pages[::4096])
own = b"x" * int(sys.argv[2])
if sys.argv[3] == "write":
    pages[:4096 * 10] = b"y" * 4096 * 10
print("up", flush=True)
time.sleep(600)
"""


def test_shared_pages_count_once(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(os.urandom(20 * MB))
    environment = os.environ | {"WATCHED": str(tmp_path)}
    command = [sys.executable, "-c", HOLD, str(file), str(30 * MB)]
    family = [
        subprocess.Popen([*command, what], env=environment, stdout=subprocess.PIPE)
        for what in ("read", "write", "ClientAppActor")
    ]
    try:
        for process in family:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
        with Watch("WATCHED", tmp_path, str(file), 0.05) as watch:
            deadline = time.monotonic() + 30
            while not watch.actors and time.monotonic() < deadline:
                time.sleep(0.05)
        assert memory_of(family[0].pid, str(file))["Anonymous"] == 0
    finally:
        for process in family:
            process.kill()
            process.communicate()
    # The kernel may take pages back that nobody has read for a while.
    assert 16 * MB < watch.file["Pss"] < 20.1 * MB
    assert 45 * MB < watch.file["Rss"] < 60.1 * MB
    assert watch.file["Anonymous"] == 40960
    assert watch.actors == 1
    assert 90 * MB < watch.peak["all"] < 200 * MB
    assert watch.peak["all"] == watch.peak["clients"] + watch.peak["engine"]
    assert 30 * MB < watch.peak["clients"] < watch.peak["engine"]


def test_settings_are_what_the_plan_is_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not {*FITTED} & {*SETTINGS}
    assert not {*FITTED.values()} & {*SETTINGS.values()}
    setting = Setting(3, 2, rows=4000, width=64, layers=1, batch_size=2, steps=1)
    make_base(tmp_path / "base", setting)
    config = configure(setting, tmp_path / "base", tmp_path)
    plan = memory.plan_simulation(config, 3, 2)
    size = (tmp_path / "base" / "model.safetensors").stat().st_size
    assert plan.parts["base weights, shared"] == pytest.approx(size, rel=0.01)

    def flwr_run(app: Path, run_config: dict[str, Any], clients: int, ray_cpus: int) -> None:
        assert (clients, ray_cpus, run_config["local.batch-size"]) == (3, 2, 2)
        held = [sys.executable, "-c", HOLD.replace("600", "1"), run_config["clients.model"]]
        held[-1] += "/model.safetensors"
        subprocess.run([*held, "1000000", "ClientAppActor"], check=True, stdout=subprocess.DEVNULL)

    monkeypatch.setattr(simulation_memory, "flwr_run", flwr_run)
    assert simulation_memory.predict(setting).parts == plan.parts
    found = simulation_memory.measure(setting)
    assert found["copies"] == found["copies_unless_shared"] == pytest.approx(1, rel=0.1)
    assert found["client_processes_at_the_peak"] == 1
    assert found["peak"]["clients"] <= found["peak"]["all"]


@pytest.mark.slow
def test_copies_in_plain_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation_memory, "SHARERS", 2)
    # No more rows than tokens: of weights that nothing touches no page is there while they are
    # shared, and the allocator keeps freed logits, as wide as the rows, in some processes.
    setting = Setting(2, 2, rows=2000, width=640, layers=4, batch_size=1, steps=1)
    shared = simulation_memory.plain_processes(setting, copied=False)
    copied = simulation_memory.plain_processes(setting, copied=True)
    # What a process takes for good when it first trains is on top of both.
    assert copied - shared == pytest.approx(1, abs=0.4)


@pytest.mark.slow
def test_a_process_that_fails_ends_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation_memory, "SHARERS", 2)
    monkeypatch.setitem(simulation_memory.FEW, "data.max-length", 1000)  # more than the model takes
    setting = Setting(2, 2, rows=2000, width=64, layers=1, batch_size=1, steps=1)
    with pytest.raises(RuntimeError, match="a process failed"):
        simulation_memory.plain_processes(setting, copied=False)


def test_results_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {8: 200.0, 4: 100.0}
    measured: list[Setting] = []

    def measure(setting: Setting) -> dict[str, Any]:
        measured.append(setting)
        if len(measured) == 5:
            raise KeyboardInterrupt
        peak = {"all": peaks.get(setting.at_once, 50.0)}
        more = {"weights": 400 * MB, "copies": 1.0, "peak": peak}
        return {"setting": asdict(setting), **more}

    plan = SimpleNamespace(parts={"one": 30, "other": 80})
    monkeypatch.setattr(simulation_memory, "predict", lambda setting: plan)
    monkeypatch.setattr(simulation_memory, "measure", measure)
    monkeypatch.setattr(
        simulation_memory, "plain_processes", lambda setting, copied: 8.0 if copied else 1.0
    )
    path = tmp_path / "memory.json"
    with pytest.raises(KeyboardInterrupt):
        simulation_memory.main(path)
    assert len(json.loads(path.read_text())["raw"]["measured"]) == 4
    simulation_memory.main(path)
    assert measured[4] == measured[5]
    assert len(measured) == len(FITTED) + len(SETTINGS) + 1
    found = json.loads(path.read_text())
    assert set(found) == FRAME | {"results", "raw"}
    assert found["results"] == {
        "copies_of_the_base_weights": 1.0,
        "plain_processes_copies": 1.0,
        "plain_processes_copies_unless_shared": 8.0,
        "least_predicted_over_measured": 0.55,
        "largest_predicted_over_measured": 2.2,
    }
    lines = table(found["raw"]).splitlines()
    assert lines[2] == "| 8 clients, all at once, 2 layers, batch 8 | 400 | 1.00 | 0.55 |"

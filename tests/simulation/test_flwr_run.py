"""Simulations end as they should and leave nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from flwr.app import UserConfig

from fedfuse.errors import FedfuseError
from fedfuse.simulation import flwr_run as module
from fedfuse.simulation.flwr_run import flwr_run, readable
from fedfuse.simulation.processes import listens, started_in, stop_all
from tests.processes import Traces
from tests.simulation.conftest import Sums
from tests.simulation.test_in_process import EXPECTED


def start(sums: Sums, config: UserConfig) -> subprocess.Popen[bytes]:
    """A Python program that simulates."""
    program = (
        # A parent that ignores SIGINT, as shells do for background jobs, passes that on.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from pathlib import Path; from fedfuse.simulation.flwr_run import flwr_run; "
        f"flwr_run(Path({str(sums.folder)!r}), {config!r}, 2)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.slow
def test_two_at_once_one_that_finishes_and_one_that_fails(
    sums: Sums, tmp_path: Path, traces: Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out ü.json"
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "own_strategy.py").write_text("VALUE = 7")
    config: UserConfig = {"out": str(out), "local.factor": 3.0, "plugin": "own_strategy"}
    with start(sums, {"mode": "fail"}) as failing, socket.socket() as other:
        try:
            other.bind(("127.0.0.1", 0))
            other.listen()
            ports = iter([other.getsockname()[1]])
            free = module.free_port
            monkeypatch.setattr(module, "free_port", lambda: next(ports, None) or free())
            flwr_run(sums.folder, config, num_clients=2, python_path=[tmp_path / "plugins"])
            log, error = failing.communicate(timeout=120)
        finally:
            failing.terminate()
    assert json.loads(out.read_text()) == {**EXPECTED, "plugin": 7}
    assert failing.returncode == 1
    assert b"RuntimeError: the server gives up" in log
    assert re.search(b"SimulationFailed: .* finished:failed(.|\n)*the server gives up", error)
    assert traces.processes() == []
    assert traces.files() == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything(
    number: signal.Signals, sums: Sums, tmp_path: Path, traces: Traces
) -> None:
    out = tmp_path / "out"
    # The one signal comes when only the SuperLink is there, the other amid Ray's work.
    early = number == signal.SIGINT
    with start(sums, {"out": str(out), "mode": "hang"}) as run:
        try:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline and run.poll() is None:
                superlink = any("flower-superlink" in line for line in traces.processes())
                if superlink if early else out.exists():
                    break
                time.sleep(0.2)
            run.send_signal(number)
            _, error = run.communicate(timeout=60)
        finally:
            run.kill()
    assert run.returncode == (-signal.SIGINT if early else 128 + signal.SIGTERM), error.decode()
    assert early or out.exists()
    assert traces.processes() == []
    assert traces.files() == []


def test_arguments_are_checked_before_anything_starts(sums: Sums, traces: Traces) -> None:
    with pytest.raises(FedfuseError, match=r"keys .*local.factor.*, got \['local.facto'\]"):
        flwr_run(sums.folder, {"local.facto": 1.0}, 2)
    with pytest.raises(
        FedfuseError, match=r"run config key 'out': expected a bool, int, float or str, got None"
    ):
        flwr_run(sums.folder, {"out": None}, 2)  # type: ignore[dict-item]
    with pytest.raises(FedfuseError, match="num_clients: expected at least 1, got 0"):
        flwr_run(sums.folder, {}, 0)
    with pytest.raises(FedfuseError, match="cpus_per_client: expected at least 1, got 0"):
        flwr_run(sums.folder, {}, 1, cpus_per_client=0)
    with pytest.raises(FedfuseError, match="gpus_per_client: expected at least 0, got -1"):
        flwr_run(sums.folder, {}, 1, gpus_per_client=-1)
    assert traces.files() == []


def test_a_last_check_ends_the_run_before_it_is_submitted(
    sums: Sums, tmp_path: Path, traces: Traces
) -> None:
    def refuse() -> None:
        raise FedfuseError("no room")

    out = tmp_path / "out"
    with pytest.raises(FedfuseError, match="no room"):
        flwr_run(sums.folder, {"out": str(out)}, num_clients=2, meanwhile=refuse)

    assert not out.exists()
    assert traces.processes() == []
    assert traces.files() == []


def test_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    environment = module._environment(tmp_path, [tmp_path / "mine"])
    assert "RAY_ADDRESS" not in environment
    assert environment["PYTHONPATH"] == f"{tmp_path / 'mine'}:/elsewhere"
    assert environment["FLWR_HOME"] == environment["RAY_TMPDIR"] == str(tmp_path)
    monkeypatch.delenv("PYTHONPATH")
    assert module._environment(tmp_path, [])["PYTHONPATH"] == ""


def test_run_configs_survive_toml() -> None:
    config: UserConfig = {
        "out": 'C:\\x "y"\n\t\x7f\x01 ü 😀',
        "local.factor": 1e-05,
        "large": 1e22,
        "limit": float("inf"),
        "n": -3,
        "flag": True,
    }
    assert tomllib.loads(module._toml(config)) == config
    assert list(map(type, tomllib.loads(module._toml(config)).values())) == list(
        map(type, config.values())
    )


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("\x1b[92mINFO \x1b[0m:      round 1\n", "round 1"),
        ("\x1b[91mERROR \x1b[0m:     no\n", "ERROR: no"),
        ("\x1b[36m(ClientAppActor pid=7)\x1b[0m \x1b[93mWARNING \x1b[0m:   x\n", None),
        ("\x1b[92mINFO \x1b[0m:      \n", ""),
        ("WARNING :   Since flwr 1.32, default simulated SuperNodes changed from 10 to 2.", ""),
        ("  File x\n", "  File x"),
    ],
)
def test_log_lines_are_readable(line: str, shown: str | None) -> None:
    assert readable(line) == ("(ClientAppActor pid=7) WARNING: x" if shown is None else shown)


def spawn(folder: Path, code: str, **environment: str) -> subprocess.Popen[bytes]:
    """A Python program that says "up" on its standard output when it is."""
    code += "; print('up', flush=True); time.sleep(600)"
    process = subprocess.Popen(
        [sys.executable, "-c", f"import os, signal, socket, subprocess, sys, time; {code}"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


def test_stubborn_and_hidden_processes_are_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedfuse.simulation.processes._GRACE", 0.3)
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    (inside / "work").mkdir(parents=True)
    outside.mkdir()
    orphan = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], env={}, "
    programs = [
        spawn(outside, "signal.signal(signal.SIGTERM, signal.SIG_IGN)", HOME_OF=str(inside)),
        spawn(inside / "work", "os.setsid()"),
        spawn(outside, orphan + "start_new_session=True)", HOME_OF=str(inside)),
    ]
    bystander = spawn(outside, "0", HOME_OF=str(outside))
    try:
        found = started_in(inside, "HOME_OF")
        assert len(found) == 4
        assert {p.pid for p in programs} < {p.pid for p in found}
        assert stop_all(inside, "HOME_OF") == []
        assert not any(p.is_running() and p.status() != "zombie" for p in found)
        assert bystander.poll() is None
    finally:
        for process in [*programs, bystander]:
            process.kill()
            process.communicate()


def test_listens_asks_the_process(tmp_path: Path) -> None:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        own.listen()
        port = own.getsockname()[1]
        other = spawn(tmp_path, "0")
        try:
            assert not listens(other.pid, port)
            assert listens(os.getpid(), port)
        finally:
            other.kill()
            other.communicate()
    assert not listens(other.pid, port)

"""Simulations on a Ray cluster that runs already, which stays as it was."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sysconfig
from pathlib import Path

import pytest

from fedfuse.errors import FedfuseError
from fedfuse.simulation import ray_cluster as module
from fedfuse.simulation.flwr_run import flwr_run, free_port
from fedfuse.simulation.ray_cluster import Node, check_room, cluster_environment, find_nodes
from tests.processes import Traces
from tests.simulation.conftest import Sums
from tests.simulation.test_in_process import EXPECTED


@pytest.fixture
def cluster(traces: Traces) -> str:
    """A cluster of one machine in the test's temporary folder; its address."""
    port = free_port()
    command = [str(Path(sysconfig.get_path("scripts")) / "ray"), "start", "--head", "--num-cpus=2"]
    command += [f"--port={port}", "--include-dashboard=false"]
    command += [f"--temp-dir={traces.folder / 'r'}", f"--ray-client-server-port={free_port()}"]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120, env=environment)
    # `ray stop` would stop every cluster of this machine; ``traces`` stops this one's processes.
    return f"127.0.0.1:{port}"


@pytest.mark.slow
def test_a_run_leaves_the_cluster_as_it_was(
    cluster: str, sums: Sums, tmp_path: Path, traces: Traces
) -> None:
    before = find_nodes(cluster)
    assert [(node.cpus, node.gpus, node.here) for node in before] == [(2.0, 0.0, True)]
    out = tmp_path / "out.json"
    config = {"out": str(out), "local.factor": 3.0}
    with pytest.raises(FedfuseError, match=r"a machine with 3 CPUs .*: 2 CPUs, 0 GPUs"):
        flwr_run(sums.folder, config, 2, cpus_per_client=3, ray_address=cluster)
    flwr_run(sums.folder, config, 2, ray_address=cluster)
    assert json.loads(out.read_text()) == EXPECTED
    logs = traces.folder / "r" / "session_latest" / "logs"
    assert sum("ClientAppActor" in log.read_text() for log in logs.glob("worker-*.out")) == 2
    assert find_nodes(cluster) == before
    assert not any("ClientAppActor" in line for line in traces.processes())
    assert sorted(traces.files()) == ["r"]


@pytest.mark.parametrize("address", ["ray://127.0.0.1:1", "127.0.0.1", "auto", "h:x", ":1"])
def test_an_address_is_a_host_and_a_port(address: str) -> None:
    with pytest.raises(FedfuseError, match=f"expected HOST:PORT .*got '{address}'"):
        find_nodes(address)


def test_nobody_there(sums: Sums, traces: Traces) -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(FedfuseError, match=f"got '{address}', which does not answer .*refused"):
        flwr_run(sums.folder, {}, 2, ray_address=address)
    assert traces.files() == []


def test_something_else_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "Traceback\nRuntimeError: other version")

    def hangs(command: list[str], timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        for run, reason in ((fails, "RuntimeError: other version"), (hangs, "no answer in 60 s")):
            monkeypatch.setattr(module.subprocess, "run", run)
            with pytest.raises(FedfuseError, match=f"expected HOST:PORT .*{address}': {reason}"):
                find_nodes(address)


def test_clients_that_a_machine_has_room_for() -> None:
    node = Node("10.0.0.1", cpus=7.0, gpus=2.0, here=False)
    assert [node.clients(1, 0.0), node.clients(2, 0.0), node.clients(1, 0.5)] == [7, 3, 4]
    check_room([Node("10.0.0.2", 0.0, 0.0, True), node], 2, 2.0)
    with pytest.raises(FedfuseError, match=r"8 CPUs and 0 GPUs .*10.0.0.1: 7 CPUs, 2 GPUs"):
        check_room([node], 8, 0.0)
    with pytest.raises(FedfuseError, match=r"1 CPUs and 2.5 GPUs"):
        check_room([node], 1, 2.5)


def test_workers_are_told_where_models_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDFUSE_CACHE", "/cache")
    monkeypatch.delenv("HF_HOME", raising=False)
    found = cluster_environment("127.0.0.1:6379")
    assert found["RAY_ADDRESS"] == "127.0.0.1:6379"
    told = json.loads(found["RAY_JOB_CONFIG_JSON_ENV_VAR"])["runtime_env"]["env_vars"]
    assert told["FEDFUSE_CACHE"] == "/cache"
    assert "HF_HOME" not in told
    assert "RAY_ADDRESS" not in os.environ

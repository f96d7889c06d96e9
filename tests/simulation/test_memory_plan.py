"""The sum of a memory plan, by hand, and what does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedfuse.errors import FedfuseError
from fedfuse.models.dry_run import ModelNeeds
from fedfuse.simulation import memory_plan
from fedfuse.simulation.memory_plan import Plan, check_gpu, check_server_gpu, plan_memory

GB = 10**9
SMALL = ModelNeeds(base=1 * GB, mapped=True, adapter=10, step=1000, scoring=7000)
LARGE = ModelNeeds(base=4 * GB, mapped=True, adapter=40, step=3000, scoring=5000)


@pytest.fixture(autouse=True)
def constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Round ones: the sums are tested, not what was measured."""
    given = {"ENGINE": 5, "SERVER": 3, "CLIENT": 2, "STATE": 10, "HEAP": 2.0}
    for name, value in given.items():
        monkeypatch.setattr(memory_plan, name, value)


def plan(clients: dict[str, ModelNeeds], server: ModelNeeds = LARGE, at_once: int = 4) -> Plan:
    return plan_memory(server, clients, server_name="l", number=10, at_once=at_once, knowledge=7)


def test_the_sum_of_the_parts() -> None:
    found = plan({"s": SMALL, "l": LARGE})
    assert found.parts == {
        "processes without a model": 5 + 3 + 4 * 2,
        "base weights, shared": 5 * GB,
        "base weights, a copy in each process": 0,
        # Each process has both adapters twice and trains one; the server has one.
        "adapters and optimizers": 4 * (2 * 50 + 23 * 40) + 5 * 40,
        "states of all clients": 10 * 10 * 40,
        # A small model scores at one go what it trains on in parts.
        "training steps and scoring": 4 * 7000 + 2 * 3000,
        "knowledge of the public set": 5 * 4 * 7,
    }
    assert found.total == sum(found.parts.values())


def test_a_model_of_another_dtype_is_in_each_process() -> None:
    alone = replace(SMALL, mapped=False)
    assert plan({"s": alone}).parts["base weights, a copy in each process"] == 4 * GB
    both = plan({"s": alone}, server=replace(LARGE, mapped=False), at_once=2)
    assert both.parts["base weights, a copy in each process"] == 2 * GB + 4 * GB
    assert both.parts["base weights, shared"] == 0


def test_a_plan_that_does_not_fit_is_refused() -> None:
    found = plan({"s": SMALL})
    found.check(found.total)
    with pytest.raises(FedfuseError) as caught:
        found.check(found.total - 1)
    for word in (
        "5.0 GB of memory",
        "4 clients at once",
        "most of it for base weights, shared",
        "available: 5.0 GB",
        "--cpus-per-client",
        "local.max-tokens",
    ):
        assert word in str(caught.value)


def test_a_share_of_a_gpu_that_is_too_small_is_refused() -> None:
    check_gpu("m", SMALL, 0.5, 4 * GB)
    message = r"'m' needs 1\.6 GB of a GPU; with --gpus-per-client 0\.25 it has 1\.0 of 4\.0 GB; .*"
    with pytest.raises(FedfuseError, match=message + r"--gpus-per-client 0\.41 or more"):
        check_gpu("m", SMALL, 0.25, 4 * GB)


def test_a_server_that_does_not_fit_onto_its_gpus() -> None:
    check_server_gpu("m", LARGE, 5 * GB)
    with pytest.raises(FedfuseError) as caught:
        check_server_gpu("m", LARGE, 4 * GB)
    for word in ("'m' needs 4.6 GB", "has 4.0 GB", "server.device-map = auto"):
        assert word in str(caught.value)

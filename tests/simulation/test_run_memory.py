"""A simulation's memory is planned from the run config, and refused where it does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from fedfuse.config.run_config import RunConfig, Scalar, parse
from fedfuse.errors import FedfuseError
from fedfuse.factory.data import load_splits, shared_samples
from fedfuse.factory.models import load_local_model
from fedfuse.models.dry_run import ModelNeeds, NeedsUnknown
from fedfuse.simulation import ray_cluster as cluster
from fedfuse.simulation import run_memory as memory
from fedfuse.simulation import simulate
from fedfuse.simulation.memory_plan import CLIENT
from tests.federations import FAST
from tests.federations import tiny_builtin as tiny_builtin

TWO = "builtin:gpt2, builtin:llama"


def config(**keys: Scalar) -> RunConfig:
    given = {key.replace("__", ".").replace("_", "-"): value for key, value in keys.items()}
    return parse({**FAST, "clients.model": TWO, **given})


def test_clients_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.clients_at_once(8, 1, 0.0, 4) == 4
    assert memory.clients_at_once(8, 3, 0.0, 8) == 2
    assert memory.clients_at_once(3, 1, 0.0, 8) == 3
    assert memory.clients_at_once(8, 4, 0.0, 2) == 1
    monkeypatch.setattr(memory, "all_devices", lambda: [0, 1])
    assert memory.clients_at_once(16, 1, 0.5, 16) == 4


def test_parts_come_from_the_config(tiny_builtin: dict[str, Path]) -> None:
    given = config()
    plan = memory.plan_simulation(given, 4, at_once=2)
    data = shared_samples(given.data, 0), given.data.max_length, 0
    bases = [
        sum(p.nbytes for n, p in model.named_parameters() if "lora" not in n)
        for model in (
            load_local_model("client", f"builtin:{name}", side, *data).lm.model
            for name, side in (
                ("gpt2", given.clients),
                ("llama", given.clients),
                ("server", given.server),
            )
        )
    ]
    assert plan.parts["base weights, shared"] == sum(bases)
    assert plan.parts["base weights, a copy in each process"] == 0
    half = memory.plan_simulation(config(clients__dtype="bfloat16"), 4, at_once=2)
    assert half.parts["base weights, shared"] == bases[2]
    assert half.parts["base weights, a copy in each process"] == sum(bases[:2])
    more = memory.plan_simulation(given, 4, at_once=3)
    assert more.total - plan.total >= CLIENT


def test_steps_are_as_large_as_the_longest_samples(
    tiny_builtin: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def note(name: str, **options: Any) -> ModelNeeds:
        seen.append(options)
        return ModelNeeds(1, True, 1, 1, 1)

    monkeypatch.setattr(memory, "dry_run", note)
    given = config(clients__model="builtin:gpt2", clients__lora_rank=3)
    splits = load_splits(given.data, given.seed, 2)
    data = shared_samples(given.data, 0), given.data.max_length, 0
    local_model = load_local_model("client", "builtin:gpt2", given.clients, *data)
    encoded = local_model.encode([s for part in splits.private for s in part] + splits.public)
    length = int(encoded.lengths.max())
    memory.client_needs(given, 2, "builtin:gpt2")
    # A distilling step has as many replayed samples as public ones.
    assert (seen[-1]["samples"], seen[-1]["length"], seen[-1]["lora"].rank) == (8, length, 3)
    memory.client_needs(config(client_distill__replay=False), 2, "builtin:gpt2")
    assert seen[-1]["samples"] == 4
    limits = {"local__max_tokens": 2 * length, "client_distill__max_tokens": 3 * length}
    memory.client_needs(config(**limits), 2, "builtin:gpt2")
    assert (seen[-1]["samples"], seen[-1]["length"]) == (3, length)


def test_what_is_on_a_gpu_is_not_in_memory(
    tiny_builtin: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "resolve_device", lambda device: torch.device(device))
    given = config()
    given = replace(given, clients=replace(given.clients, device="cuda"))
    unseen = memory.plan_simulation(given, 2, 1)
    seen = memory.plan_simulation(given, 2, 1, gpus_per_client=0.5)
    assert seen.parts["base weights, shared"] < unseen.parts["base weights, shared"]
    assert seen.parts["training steps and scoring"] < unseen.parts["training steps and scoring"]
    monkeypatch.setattr(memory, "total_memory", lambda device: 10**9)
    memory.check_machine(given, 2, seen, 0.9)
    memory.check_machine(given, 2, seen, 0.0)
    with pytest.raises(FedfuseError, match=r"'builtin:gpt2' needs 0.6 GB of a GPU; with --gpus"):
        memory.check_machine(given, 2, seen, 0.5)


def test_a_server_may_be_spread_over_all_gpus(
    tiny_builtin: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = config()
    plan = memory.plan_simulation(given, 2, 1)
    monkeypatch.setattr(memory, "resolve_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(memory, "all_devices", lambda: [0, 1])
    monkeypatch.setattr(memory, "total_memory", lambda device: 4 * 10**8)
    with pytest.raises(FedfuseError, match=r"server with 'builtin:server' needs 0\.6 GB of a GPU"):
        memory.check_machine(given, 2, plan, 0.0)
    given = replace(given, server=replace(given.server, device_map="auto"))
    memory.check_machine(given, 2, plan, 0.0)
    sizes = {0: 4 * 10**8, 1: None}  # an accelerator that does not say
    monkeypatch.setattr(memory, "total_memory", lambda device: sizes[device.index])
    memory.check_machine(given, 2, plan, 0.0)


def test_the_command_refuses_what_does_not_fit(
    tiny_builtin: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(simulate, "console", Console(stderr=True, width=300))
    little = SimpleNamespace(available=10**9)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: little)
    given = config(output=str(tmp_path))
    with pytest.raises(FedfuseError, match=r"needs [23]\.\d GB of memory .* available: 1\.0 GB"):
        simulate.plan_memory(given, 4, 1, 0.0, "")
    shown = capsys.readouterr().err
    assert "base weights, shared" in shown
    assert "all together" in shown


def test_a_cluster_is_planned_for_the_clients_that_come_here(
    tiny_builtin: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(simulate, "console", Console(stderr=True, width=300))
    nodes = [cluster.Node("a", 64.0, 0.0, False), cluster.Node("b", 6.0, 0.0, True)]
    monkeypatch.setattr(cluster, "find_nodes", lambda address: nodes)
    simulate.plan_memory(config(), 4, 2, 0.0, "b:6379")
    assert "memory at the peak, 3 clients at once" in capsys.readouterr().err


def test_no_plan_is_no_reason_to_stop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        raise NeedsUnknown("model 'x': its memory cannot be told")

    monkeypatch.setattr("strategies.model.plan_simulation", fails)
    simulate.plan_memory(config(), 4, 1, 0.0, "")
    assert "no memory plan: model 'x'" in capsys.readouterr().err
    simulate.plan_memory(config(strategy="feddtpt"), 4, 1, 0.0, "")
    assert capsys.readouterr().err == ""

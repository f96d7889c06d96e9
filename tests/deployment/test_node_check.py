"""What is wrong with a machine is found, and reported with what fixes it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from fedfuse.algorithms.local_model import LocalModel
from fedfuse.cli.main import app
from fedfuse.deployment import node_check as module
from fedfuse.deployment.certificates import make_node_files, make_superlink_files
from fedfuse.deployment.node_check import Machine, check_machine
from fedfuse.deployment.superlink_client import Credentials
from tests.federations import FAST
from tests.federations import tiny_builtin as tiny_builtin

NODE = {"partition-id": 0, "num-partitions": 3}
ALL = ["versions", "configuration", "data", "tokenizer", "model", "memory"]


@pytest.fixture(autouse=True, scope="module")
def _tiny(tiny_builtin: dict[str, Path]) -> None:
    pass


def found(node: dict[str, Any], run: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """What the checks find, by their names."""
    machine = Machine({**NODE, **node}, {**FAST, **(run or {})}, **more)
    check_machine(machine)
    results = {result.check: result for result in machine.results}
    assert machine.ready == all(not result.fix for result in results.values())
    assert all(result.found for result in results.values())
    return results


def wrong(results: dict[str, Any]) -> dict[str, str]:
    return {name: result.found for name, result in results.items() if result.fix}


def test_a_machine_that_is_ready() -> None:
    results = found({})
    assert list(results) == ALL
    assert wrong(results) == {}
    assert results["configuration"].found == "client 0: builtin:gpt2 in float32 on cpu"
    assert "private samples" in results["data"].found


@pytest.mark.parametrize(
    ("node", "check", "message", "checked"),
    [
        ({"modle": "x"}, "configuration", "did you mean 'model'", ALL[:2]),
        ({"device": "cuda:7"}, "configuration", "got 'cuda:7'", ALL[:2]),
        ({"data": "./none.jsonl"}, "data", "'./none.jsonl' does not exist", ALL[:5]),
        ({"model": "./none"}, "tokenizer", "'./none' does not exist", ALL[:4]),
        ({"partition-id": 3}, "data", "expected 0 to 2, got 3", ALL[:5]),
    ],
)
def test_what_is_wrong_is_found(
    node: dict[str, Any], check: str, message: str, checked: list[str]
) -> None:
    results = found(node)
    assert list(results) == checked
    ((name, text),) = wrong(results).items()
    assert name == check
    assert message in text


def test_weights_that_do_not_load(tiny_builtin: dict[str, Path], tmp_path: Path) -> None:
    for file in tiny_builtin["gpt2"].iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    results = found({"model": str(tmp_path)})
    assert list(wrong(results)) == ["model"]
    assert "cannot be loaded" in results["model"].found


def test_memory_that_does_not_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def learn(self: LocalModel, *arguments: Any, **options: Any) -> Any:
        asked.append(options.get("replay"))
        if len(asked) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.0, {}

    monkeypatch.setattr(LocalModel, "learn", learn)
    results = found({})
    assert "does not fit into the GPU's memory: CUDA out of memory" in wrong(results)["memory"]
    assert "max-tokens" in results["memory"].fix
    assert asked[1] is not None


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "peft":
            raise metadata.PackageNotFoundError(name)
        return "1.40.0" if name == "flwr" else real(name)

    monkeypatch.setattr(module, "version", version)
    text = wrong(found({}))["versions"]
    assert "flwr: expected <1.43,>=1.41, got 1.40.0" in text
    assert "peft: expected " in text


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"localhost:{probe.getsockname()[1]}"


def test_certificate_key_and_superlink(tmp_path: Path, nobody: str) -> None:
    authority, *_ = make_superlink_files(tmp_path, ["localhost"])
    key, _ = make_node_files(tmp_path, "node")
    results = found({"modle": ""}, credentials=Credentials(nobody, authority, key))
    assert "cannot be reached" in wrong(results)["SuperLink"]
    results = found({"modle": ""}, credentials=Credentials("here", authority, key))
    assert wrong(results)["SuperLink"] == "SuperLink: expected HOST:PORT, got 'here'"
    results = found({"modle": ""}, credentials=Credentials(nobody, key, authority))
    assert {"certificate", "key"} < set(wrong(results))
    assert "SuperLink" not in results


def test_the_command(tmp_path: Path) -> None:
    given = "".join(f"{key} = {json.dumps(value)}\n" for key, value in FAST.items())
    (tmp_path / "run.toml").write_text(given)
    for content, status in (("partition-id = 0", 0), ("partition-id = -1", 1), ("=", 1)):
        (tmp_path / "node.toml").write_text(content)
        command = ["node", "check", str(tmp_path / "node.toml"), "--run-config"]
        done = CliRunner().invoke(app, [*command, str(tmp_path / "run.toml")])
        assert done.exit_code == status
        if content != "=":
            assert ("no" in done.output.split()) == bool(status)

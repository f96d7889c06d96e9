"""Fusion rules of the run config, in whole federations."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from clients.knowledge import KnowledgeClient
from fedfuse.config.run_config import RunConfig
from fedfuse.errors import FedfuseError
from tests.federations import federate, lines

SHORT: dict[str, Any] = {
    "clients": 2,
    "rounds": 1,
    "baselines": False,
    "data__domains": 2,
    "data__public": 12,
    "data__questions": 1,
    "gate__steps": 2,
    "gate__folds": 2,
}


def test_each_side_goes_by_its_rule(tmp_path: Path, tiny_builtin: object) -> None:
    own = "tests.fusion.example_stats:first_teacher"
    rules = {"fusion__server_rule": "uniform", "fusion__client_rule": own}
    folder = federate(tmp_path, **SHORT, **rules, strategy="fusion-x")
    shares: dict[str, set[tuple[str, float]]] = {"up": set(), "down": set()}
    for line in lines(folder, "teacher_shares"):
        shares[line["direction"]].add((line["teacher"], line["share"]))
    assert shares["up"] == {("0", 0.5), ("1", 0.5), ("none", 0.0)}
    assert shares["down"] == {("server", 1.0), ("none", 0.0)}
    assert not (folder / "gates.jsonl").exists()


def test_a_strategy_is_its_rules(tmp_path: Path, tiny_builtin: object) -> None:
    named = federate(tmp_path / "named", **SHORT, strategy="fusion-x")
    chosen = federate(
        tmp_path / "chosen", **SHORT, strategy="fedmkt", fusion__server_rule="learned-gate"
    )
    for name in ("gates", "teacher_shares", "metrics"):
        assert lines(chosen, name) == lines(named, name)


def test_an_unknown_rule_is_refused_before_anything_runs(tmp_path: Path) -> None:
    for side in ("server", "client"):
        with pytest.raises(FedfuseError, match=r"fusion rule: expected dual-min-ce, .* got 'min'"):
            federate(tmp_path, **SHORT, strategy="fedmkt", **{f"fusion__{side}_rule": "min"})
    assert not list(tmp_path.iterdir())


def test_no_message_brings_code() -> None:
    client: Any = SimpleNamespace(config=RunConfig())
    request = RecordDict({"config": ConfigRecord({"rule": "os:getcwd"})})
    with pytest.raises(FedfuseError, match=r"rule of the message: expected .* got 'os:getcwd'"):
        KnowledgeClient._named_rule(client, request)

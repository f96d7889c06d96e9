"""Both halves of a strategy of one's own, from a file outside the checkout."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from clients.app import CLIENTS, client_name, find_client
from clients.knowledge import KnowledgeClient
from fedfuse.config.run_config import flatten, parse
from fedfuse.errors import FedfuseError
from fedfuse.plugins import class_name
from strategies.fedmkt import FedMKT
from strategies.registry import STRATEGIES, find_strategy, with_client
from tests.federations import FAST, federate, lines

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_client.py"
SHORT: dict[str, Any] = {"rounds": 1, "baselines": False, "clients": 2, "data__domains": 2}
NAME = "mine:FarBetter"


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(EXAMPLE, tmp_path / "mine.py")
    monkeypatch.syspath_prepend(str(tmp_path))


def down(folder: Path) -> list[float]:
    found = lines(folder, "teacher_shares")
    return [x["share"] for x in found if x["direction"] == "down" and x["teacher"] == "server"]


@pytest.mark.usefixtures("mine")
def test_the_strategys_own_client_answers(tmp_path: Path) -> None:
    config = with_client(parse({**FAST, "strategy": NAME}))
    assert config.client == "mine:CautiousClient"
    own = federate(tmp_path / "own", **SHORT, strategy=NAME, client=config.client)
    plain = federate(tmp_path / "plain", **SHORT)
    assert sum(down(own)) < sum(down(plain))


@pytest.mark.usefixtures("mine")
def test_a_run_without_the_client_is_refused(tmp_path: Path) -> None:
    """Clients read its name from the run config and from nowhere else."""
    with pytest.raises(FedfuseError, match="client: expected 'mine:CautiousClient'"):
        federate(tmp_path, **SHORT, strategy=NAME)


def test_builtin_strategies_need_no_client_in_the_run_config() -> None:
    for name in STRATEGIES:
        strategy = find_strategy(name)
        assert client_name(parse({"strategy": name})) == strategy.client_name()
        assert class_name(find_client(strategy.client_name())) == CLIENTS[strategy.client_name()]
        assert with_client(parse({"strategy": name})).client == strategy.client_name()


def test_a_class_is_accepted_for_a_name() -> None:
    class Local(FedMKT):
        client = KnowledgeClient

    assert find_strategy(class_name(Local)) is Local
    assert Local.client_name() == "clients.knowledge:KnowledgeClient"
    assert flatten(with_client(parse({"strategy": class_name(Local)})))["client"]


@pytest.mark.parametrize("name", ["nothing", "os:path", "no_such_module:Class", "pathlib:Path"])
def test_other_clients_are_refused(name: str) -> None:
    with pytest.raises(FedfuseError, match=r"client = .* knowledge, feddtpt, or module:Class"):
        find_client(name)

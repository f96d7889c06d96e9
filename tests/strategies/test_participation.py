"""A few of many clients in each round: in turns, those that are there, the others untouched."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from experiments.faults.run import outcome
from fedfuse.config.run_config import RunConfig, parse
from fedfuse.errors import FedfuseError
from fedfuse.report.html import write_report
from strategies.messenger import Messenger
from strategies.participation import Participation
from tests.federations import federate, lines, tiny_builtin
from tests.strategies.test_resume import cut_off

__all__ = ["tiny_builtin"]

NAMES = [str(number) for number in range(10)]
FEW = {"clients": 3, "rounds": 3, "clients_per_round": 2, "data__domains": 3}


def drawn(rounds: int, per_round: float, seed: int = 0, **away: list[int]) -> list[list[str]]:
    """Clients by round; ``away`` are rounds that some are not there in."""
    draw = Participation(RunConfig(seed=seed, clients_per_round=per_round))
    return [
        draw.clients(r, NAMES, {n for n in NAMES if r not in away.get(f"c{n}", [])})
        for r in range(1, rounds + 1)
    ]


def test_everybody_has_a_turn_before_anybody_has_two() -> None:
    rounds = drawn(20, 3)
    assert all(len(set(names)) == 3 and names == sorted(names) for names in rounds)
    for last in range(1, 21):
        turns = Counter(name for names in rounds[:last] for name in names)
        assert max(turns.values()) - min(turns[name] for name in NAMES) <= 1
    assert len({tuple(names) for names in rounds}) > 10  # not the same groups again and again


def test_the_draw_is_the_seeds() -> None:
    assert drawn(6, 4) == drawn(6, 4)
    assert drawn(6, 4) != drawn(6, 4, seed=1)


@pytest.mark.parametrize(
    ("per_round", "size"), [(0, 10), (0.25, 3), (0.01, 1), (1, 1), (7, 7), (99, 10)]
)
def test_a_number_or_a_share(per_round: float, size: int) -> None:
    assert {len(names) for names in drawn(4, per_round)} == {size}


def test_who_was_away_gets_one_turn_back() -> None:
    rounds = drawn(12, 5, c7=[1, 2, 3, 4, 5, 6])
    there = ["7" in names for names in rounds]
    assert there[:6] == [False] * 6
    assert there[6]
    assert sum(there[6:]) <= 4  # in turns from then on
    assert all(len(names) == 5 for names in rounds)


def test_too_few_are_there() -> None:
    away = {f"c{name}": [1] for name in NAMES[2:]}
    assert drawn(1, 5, **away) == [["0", "1"]]


def test_a_run_that_goes_on_draws_the_same() -> None:
    config = RunConfig(clients_per_round=3)
    whole, first, second = (Participation(config) for _ in range(3))
    expected = [whole.clients(r, NAMES, NAMES) for r in range(1, 8)]
    assert [first.clients(r, NAMES, NAMES) for r in range(1, 4)] == expected[:3]
    second.load(first.state())
    assert [second.clients(r, NAMES, NAMES) for r in range(3, 8)] == expected[2:]
    assert [second.rounds(name) for name in NAMES] == [whole.rounds(name) for name in NAMES]
    assert Participation(RunConfig()).state() == {}


@pytest.mark.parametrize("value", [2.5, -1, float("inf"), float("nan")])
def test_neither_a_number_nor_a_share(value: float) -> None:
    with pytest.raises(FedfuseError, match=r"clients-per-round: expected a whole number, or a sh"):
        parse({"clients-per-round": value})


def test_too_few_are_connected(
    tmp_path: Path, tiny_builtin: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round of two needs both where two are the least, though nobody who is asked fails."""
    real = Messenger.connected

    def connected(self: Messenger) -> set[int]:
        return set(list(real(self))[:1]) if self.names else real(self)

    monkeypatch.setattr(Messenger, "connected", connected)
    with pytest.raises(FedfuseError, match=r"train\.local: .* at least 2 clients .* got 1"):
        federate(tmp_path, **FEW, strategy="fedmkt", baselines=False, min_clients=2)


def asked(folder: Path, phase: str) -> list[set[str]]:
    """Clients that were asked in rounds 1, 2 and 3."""
    sent = [line for line in lines(folder, "messages") if line["phase"] == phase]
    return [{line["client"] for line in sent if line["round"] == r} for r in (1, 2, 3)]


@pytest.mark.parametrize("strategy", ["fedmkt", "fusion-x", "fedfuse", "llm2slm", "fedavg-lora"])
def test_two_of_three_clients(strategy: str, tmp_path: Path, tiny_builtin: object) -> None:
    keys: dict[str, Any] = {**FEW, "strategy": strategy}
    if strategy == "fedavg-lora":
        keys["clients__model"] = "builtin:server"
    folder = federate(tmp_path, **keys)
    rounds = asked(folder, "train.local")
    assert [len(names) for names in rounds] == [2, 2, 2]
    assert set.union(*rounds[:2]) == {"0", "1", "2"}
    turns = Counter(name for names in rounds for name in names)
    assert sorted(turns.values()) == [2, 2, 2]
    assert asked(folder, "evaluate") == rounds
    if strategy != "fedavg-lora":
        assert asked(folder, "train.distill") == rounds
    assert all(line["error"] is None for line in lines(folder, "messages"))
    # Baselines have the steps of two rounds each, as the clients had.
    efforts = lines(folder, "training")
    mine = [x for x in efforts if x["model"] == "0"]
    federated = sum(x["steps"] for x in mine if x["stage"] == "federated")
    alone = [x["steps"] for x in mine if x["stage"] == "standalone"]
    assert 0 < sum(alone) <= federated
    assert write_report(folder).exists()


def test_who_is_not_asked_keeps_what_it_has(tmp_path: Path, tiny_builtin: object) -> None:
    folder = federate(tmp_path, **FEW, strategy="fedmkt", baselines=False)
    metrics = lines(folder, "metrics")
    for number, names in enumerate(asked(folder, "train.local"), start=1):
        scored = {x["model"] for x in metrics if x["round"] == number} - {"server"}
        assert scored == names


def test_piggyback_asks_the_same(tmp_path: Path, tiny_builtin: object) -> None:
    keys: dict[str, Any] = {**FEW, "strategy": "fedmkt", "baselines": False}
    apart = federate(tmp_path / "apart", **keys)
    together = federate(tmp_path / "together", **keys, piggyback=True)
    assert outcome(together) == outcome(apart)


@pytest.mark.parametrize("piggyback", [False, True])
def test_a_run_goes_on(
    piggyback: bool, tmp_path: Path, tiny_builtin: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: dict[str, Any] = {**FEW, "strategy": "fedmkt", "baselines": False}
    keys["piggyback"] = piggyback
    whole = federate(tmp_path / "whole", **keys)
    folder = cut_off(8 if piggyback else 18, tmp_path / "cut", monkeypatch, **keys)
    assert len(asked(folder, "train.local")[2]) == 0
    federate(tmp_path / "cut", **keys, resume=str(folder))
    assert outcome(folder) == outcome(whole)

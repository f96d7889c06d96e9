"""One message a round: what is learned is what separate messages teach, bit for bit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from flwr.app import RecordDict

from experiments.faults.run import outcome
from fedfuse.errors import FedfuseError
from fedfuse.flower.messages import DISTILL, EVALUATE, LOCAL, REGISTER
from fedfuse.flower.piggyback import JOINT
from fedfuse.report.feddtpt import bytes_per_client_round
from fedfuse.tracking.run import read_run
from tests.federations import about, federate, lines
from tests.prompt_federations import tiny_world, tune
from tests.strategies.saboteur import sabotage
from tests.strategies.test_absence import THREE, TWO, among, events, heard
from tests.strategies.test_faults import errors
from tests.strategies.test_resume import KINDS, SHORT, cut_off, flip

__all__ = ["tiny_world"]

TESTED = {"strategy": "fedmkt", "acceptance_test": True, "data__holdout": 4}
TURNS = {"strategy": "fedmkt", "knowledge__public_share": 0.5}
AVERAGED = {"strategy": "fedavg-lora", "clients__model": "builtin:server"}
STRATEGIES = {**KINDS, "acceptance-test": TESTED, "turns": TURNS, "fedavg-lora": AVERAGED}


def messages(folder: Path) -> Counter[tuple[int, str, str]]:
    """Messages in messages.jsonl, by round, phase and client."""
    sent = [line for line in lines(folder, "messages") if line["sent_bytes"]]
    return Counter((line["round"], line["phase"], line["client"]) for line in sent)


@pytest.mark.parametrize("kind", STRATEGIES)
def test_the_same_is_learned(kind: str, tmp_path: Path) -> None:
    keys = {**SHORT, **STRATEGIES[kind]}
    apart = federate(tmp_path / "apart", **keys)
    together = federate(tmp_path / "together", **keys, piggyback=True)
    assert outcome(together) == outcome(apart)
    assert len(outcome(together)) >= 4
    # Registration, a message a round, and one that closes the last round.
    assert messages(together) == {
        (number, phase, client): times
        for client in ("0", "1")
        for number, phase, times in ((0, REGISTER, 1), (1, JOINT, 1), (2, JOINT, 2))
    }
    assert errors(together) == []
    assert read_run(together).status == "finished"


@pytest.mark.usefixtures("tiny_world")
def test_the_same_prompt_is_found(tmp_path: Path) -> None:
    apart = tune(tmp_path / "apart")
    together = tune(tmp_path / "together", piggyback=True)
    for name in ("prompts", "aggregations"):
        assert lines(together, name) == lines(apart, name)
    assert {phase for _, phase, _ in messages(together)} == {REGISTER, JOINT}
    assert bytes_per_client_round(read_run(together))


def test_baselines_follow_in_a_message_of_their_own(tmp_path: Path) -> None:
    keys = {**SHORT, "rounds": 1, "baselines": True}
    apart = federate(tmp_path / "apart", **keys)
    together = federate(tmp_path / "together", **keys, piggyback=True)
    assert outcome(together) == outcome(apart)
    assert errors(together) == []


def test_a_lost_message_costs_its_phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the same phases, each with a message of its own, had been lost."""
    lost = {(1, DISTILL, 1): "hang", (1, EVALUATE, 1): "hang", (2, LOCAL, 1): "hang"}
    among(monkeypatch, lost)
    apart = federate(tmp_path / "apart", **THREE, knowledge__delta_threshold=0.01)
    among(monkeypatch, {(2, JOINT, 1): "hang"})
    together = federate(
        tmp_path / "together", **THREE, knowledge__delta_threshold=0.01, piggyback=True
    )
    assert outcome(together) == outcome(apart)
    assert errors(together) == [(JOINT, "1", "no reply within 0.2 s")]
    assert heard(together, 2) == {"0", "2", "none"}
    assert heard(together, 3) == {"0", "1", "2", "none"}


@pytest.mark.parametrize("fault", ["late", "die", "stale"])
def test_a_reply_that_does_not_count(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client is a round ahead of what the server knows of it, or was started again."""
    among(monkeypatch, {(2, JOINT, 1): fault})
    folder = federate(tmp_path, **THREE, knowledge__delta_threshold=0.01, piggyback=True)
    refused = "refused: round of the reply: expected {1}, got {0}"
    assert errors(folder) == (
        [
            (LOCAL, "1", refused.format(1, 2)),
            # Its first message had nothing to distill.
            (DISTILL, "1", refused.format(None, 1)),
            (EVALUATE, "1", refused.format(0, 1)),
        ]
        if fault == "stale"
        else [(JOINT, "1", "no reply within 0.2 s")]
    )
    assert heard(folder, 2) == {"0", "2", "none"}
    assert heard(folder, 3) == {"0", "1", "2", "none"}
    measured = {x["round"] for x in lines(folder, "metrics") if x["model"] == "1"}
    assert measured == {0, 2, 3}


def test_who_comes_late_learns_from_the_server_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    among(monkeypatch, {}, {2: frozenset({0, 1})})
    folder = federate(tmp_path, **TWO, piggyback=True)
    assert errors(folder) == []
    assert events(folder) == [(1, "joined", "2")]
    assert heard(folder, 1) == {"0", "1", "none"}
    assert heard(folder, 2) == {"0", "1", "2", "none"}
    assert {x["round"] for x in lines(folder, "metrics") if x["model"] == "2"} == {1, 2}


def test_who_is_away_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    among(monkeypatch, {}, {1: frozenset({2})})
    folder = federate(tmp_path, **THREE, piggyback=True)
    assert errors(folder) == [(JOINT, "1", "not connected")]
    assert heard(folder, 3) == {"0", "1", "2", "none"}


def test_memory_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first step, which is of training on private data."""
    among(monkeypatch, {(1, JOINT, 1): "memory"})
    folder = federate(tmp_path, **TWO, piggyback=True)
    assert errors(folder) == []
    assert events(folder) == [(1, "out-of-memory", "1")]


def test_one_phase_that_fails_costs_the_message(tmp_path: Path) -> None:
    def fail(kind: str, reply: object) -> None:
        if kind == JOINT:
            raise RuntimeError("the power failed")

    folder = federate(tmp_path, **TWO, piggyback=True, app=sabotage({2: fail}))
    assert [(phase, client) for phase, client, _ in errors(folder)] == [(JOINT, "2")] * 3
    assert about(folder)["status"] == "finished"


def test_a_reply_without_phases_is_refused(tmp_path: Path) -> None:
    def strip(kind: str, reply: Any) -> None:
        if kind == JOINT:
            reply.content = RecordDict({})

    folder = federate(tmp_path, **TWO, piggyback=True, app=sabotage({2: strip}))
    assert {error for _, _, error in errors(folder)} == {
        "refused: expected phases with names, got the records []"
    }
    assert heard(folder, 2) == {"0", "1", "none"}


# A message is sent once and received twice: registration and each of three messages take 3 ticks.
@pytest.mark.parametrize("place", [2, 5, 7, 8, 9, 10, 12])
def test_a_killed_server_goes_on_bit_for_bit(
    place: int, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cut_off(place, tmp_path, monkeypatch, **RESUMED)
    federate(tmp_path, **RESUMED, resume=str(folder))
    assert outcome(folder) == whole
    done = -1 if place <= 6 else (place - 4) // 3
    [event] = lines(folder, "events")
    assert event["detail"] == ("from the beginning" if done < 0 else f"after round {done}")


RESUMED: dict[str, Any] = {**SHORT, **KINDS["fedmkt"], "piggyback": True}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the run finds out that nobody disturbs."""
    return outcome(federate(tmp_path_factory.mktemp("whole"), **RESUMED))


def test_a_damaged_checkpoint_costs_a_round(
    whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the message that closes: the clients are two messages ahead of what is left."""
    folder = cut_off(12, tmp_path, monkeypatch, **RESUMED)
    flip(folder / "server" / "checkpoints" / "round-2.safetensors")
    federate(tmp_path, **RESUMED, resume=str(folder))
    assert outcome(folder) == whole


def test_a_run_does_not_change_between_the_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cut_off(8, tmp_path, monkeypatch, **RESUMED)
    with pytest.raises(FedfuseError, match="piggyback: expected True, got False"):
        federate(tmp_path, **{**RESUMED, "piggyback": False}, resume=str(folder))

"""Clients that are away, come back, come late, or speak of another round than the one asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from experiments.faults.fleet import Fleet, Schedule, out_of_memory_once
from experiments.faults.run import outcome
from fedfuse.algorithms.local_model import LocalModel
from fedfuse.errors import FedfuseError
from fedfuse.flower.messages import EVALUATE, LOCAL, REGISTER
from fedfuse.report.incidents import absence_rows, event_rows
from fedfuse.simulation import in_process as grid
from fedfuse.tracking.run import read_run
from strategies.server_state import ServerState
from tests.federations import about, federate, lines
from tests.strategies.saboteur import sabotage
from tests.strategies.test_faults import SHORT, errors
from tests.strategies.test_resume import cut_off
from tests.tracking.test_checkpoints import full_disk

TWO: dict[str, Any] = {**SHORT, "rounds": 2, "timeout": 0.2, "min_clients": 1}
THREE = {**TWO, "rounds": 3}


def among(
    monkeypatch: pytest.MonkeyPatch,
    faults: Mapping[tuple[int, str, int], str],
    away: Mapping[int, frozenset[int]] | None = None,
) -> None:
    """Let the next federation be one of a schedule."""
    schedule = Schedule(faults, away or {})
    monkeypatch.setattr(grid, "InProcessGrid", lambda *given: Fleet(schedule, *given))
    monkeypatch.setattr("strategies.messenger.POLL_SECONDS", 0.05)


def events(folder: Path) -> list[tuple[int, str, str]]:
    return [(x["round"], x["event"], x["client"]) for x in lines(folder, "events")]


def heard(folder: Path, server_round: int) -> set[str]:
    """The clients whose knowledge was looked at in a round."""
    found = lines(folder, "teacher_shares")
    return {x["teacher"] for x in found if (x["direction"], x["round"]) == ("up", server_round)}


def test_knowledge_of_an_earlier_round_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In good form, of the right samples, and with nothing else wrong."""
    among(monkeypatch, {(2, LOCAL, 1): "stale"})
    folder = federate(tmp_path, **TWO)
    assert errors(folder) == [(LOCAL, "1", "refused: round of the reply: expected 2, got 1")]
    assert heard(folder, 1) == {"0", "1", "2", "none"}
    assert heard(folder, 2) == {"0", "2", "none"}


def test_the_log_says_how_many_clients_are_connected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once for each number of them, and not where all are there at once."""
    monkeypatch.setattr("strategies.base.NODE_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr("strategies.base.NODE_POLL_SECONDS", 0.0)
    counts = iter([0, 1, 1, 2])

    class Slow(grid.InProcessGrid):
        def get_node_ids(self) -> Iterable[int]:
            return list(super().get_node_ids())[: next(counts, None)]

    monkeypatch.setattr(grid, "InProcessGrid", Slow)
    with caplog.at_level("INFO"):
        federate(tmp_path, **{**SHORT, "rounds": 1, "min_clients": 3})
    told = [line for line in caplog.messages if line.startswith("waiting for clients")]
    assert told == [f"waiting for clients: {n} of 3 (min-clients) are connected" for n in (0, 1, 2)]


def test_who_is_away_is_not_waited_for_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    among(monkeypatch, {}, {1: frozenset({2})})
    folder = federate(tmp_path, **THREE, knowledge__delta_threshold=0.01)
    assert {(c, e) for _, c, e in errors(folder)} == {("1", "not connected")}
    assert [heard(folder, r) - {"none"} for r in (1, 2, 3)] == [
        {"0", "1", "2"},
        {"0", "2"},
        {"0", "1", "2"},
    ]
    assert not (folder / "events.jsonl").exists()  # its node remembers, and is the same
    [row] = absence_rows(read_run(folder))
    assert row.rounds == "2"


def test_who_comes_late_takes_part_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    among(monkeypatch, {}, {2: frozenset({0, 1})})
    folder = federate(tmp_path, **TWO)
    assert errors(folder) == []
    assert events(folder) == [(1, "joined", "2")]
    assert set(about(folder)["models"]) == {"server", "0", "1", "2"}
    assert heard(folder, 1) == {"0", "1", "none"}
    assert heard(folder, 2) == {"0", "1", "2", "none"}
    assert (folder / "clients" / "2" / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("piggyback", [False, True])
def test_who_is_away_when_a_run_goes_on_is_in_its_messages(
    piggyback: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server knows of it from before, by its name alone."""
    keys: dict[str, Any] = {**TWO, "clients": 2, "piggyback": piggyback}
    folder = cut_off(9 if piggyback else 15, tmp_path, monkeypatch, **keys)
    before = len(lines(folder, "messages"))
    # It is not there from the resumed server's first look at its nodes to the end of its round.
    among(monkeypatch, {}, {1: frozenset({0, 1})})
    federate(tmp_path, **keys, resume=str(folder))
    message_log = lines(folder, "messages")[before:]
    begun = next(n for n, x in enumerate(message_log) if x["client"] == "1" and not x["error"])
    assert message_log[begun]["phase"] == REGISTER
    asked = [(x["round"], x["phase"]) for x in message_log[:begun] if x["client"] == "0"]
    away = [(x["round"], x["phase"]) for x in message_log[:begun] if x["client"] == "1"]
    assert away == [phase for phase in asked if phase[1] != REGISTER]
    assert {x["error"] for x in message_log[:begun] if x["client"] == "1"} == {"not connected"}
    assert [x for x in message_log[begun:] if x["error"]] == []


def test_a_node_that_was_started_again_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is gone, the copy on its disk is not: the run is the same but for one reply."""
    among(monkeypatch, {(1, EVALUATE, 1): "late"})
    late = federate(tmp_path / "late", **TWO)
    among(monkeypatch, {(1, EVALUATE, 1): "die"})
    died = federate(tmp_path / "died", **TWO)
    [error] = errors(died)
    assert error == (EVALUATE, "1", "no reply within 0.2 s")
    for name in ("metrics.jsonl", "teacher_shares.jsonl"):
        assert (died / name).read_text() == (late / name).read_text()


class Forgetful(grid.InProcessGrid):
    """Flower puts away what clients remember of their registration, and of no other message: their
    processes are killed when they have answered.
    """

    def _call(self, message: Message, node_id: int) -> Message | None:
        before = self._contexts[node_id]
        reply = super()._call(message, node_id)
        if message.metadata.message_type != REGISTER:
            self._contexts[node_id] = before
        return reply


@pytest.mark.parametrize("piggyback", [False, True])
def test_a_client_that_is_killed_when_it_has_answered_remembers(
    piggyback: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the copy on its disk, which is newer than what Flower has of it."""
    keys = {**TWO, "knowledge__delta_threshold": 0.01, "piggyback": piggyback}
    wanted = outcome(federate(tmp_path / "plain", **keys))
    monkeypatch.setattr(grid, "InProcessGrid", Forgetful)
    folder = federate(tmp_path / "forgetful", **keys)
    assert outcome(folder) == wanted
    assert errors(folder) == []


def test_who_comes_back_as_another_node_is_asked_until_the_first_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Node 2 is the machine of node 1, started again, while Flower still believes in node 1."""
    among(monkeypatch, {}, {2: frozenset({0}), 1: frozenset({2, 3})})
    app = sabotage({}, {2: 1})
    folder = federate(tmp_path, **THREE, app=app)
    refused = [error for phase, _, error in errors(folder) if phase == REGISTER]
    assert refused == ["refused: partition 1 is taken by another client"]
    assert events(folder) == [(1, "returned", "1")]
    assert [heard(folder, r) - {"none"} for r in (1, 2, 3)] == [{"0", "1"}] * 3


def test_a_second_reply_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = federate(tmp_path / "plain", **TWO)
    among(monkeypatch, {(r, p, 1): "twice" for r in (0, 1, 2) for p in (REGISTER, LOCAL, EVALUATE)})
    twice = federate(tmp_path / "twice", **TWO)
    for name in ("metrics.jsonl", "teacher_shares.jsonl"):
        assert (twice / name).read_text() == (plain / name).read_text()
    assert len(lines(twice, "messages")) == len(lines(plain, "messages"))


def test_a_client_without_memory_says_so_and_stays_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    among(monkeypatch, {(1, LOCAL, 1): "memory"})
    folder = federate(tmp_path, **TWO)
    assert errors(folder) == []
    [event] = lines(folder, "events")
    assert (event["round"], event["event"], event["client"]) == (1, "out-of-memory", "1")
    assert event["detail"].startswith("local: out of memory; ")
    [row] = event_rows(read_run(folder))
    assert row.detail == event["detail"]


def test_a_server_without_memory_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learn = LocalModel.learn

    def short_of_memory(*arguments: Any, **more: Any) -> Any:
        if "on_step" not in more or more["on_step"] is None:  # a client
            return learn(*arguments, **more)
        with out_of_memory_once():
            return learn(*arguments, **more)

    monkeypatch.setattr(LocalModel, "learn", short_of_memory)
    assert events(federate(tmp_path, **SHORT)) == [(1, "out-of-memory", "server")]


def test_a_full_disk_ends_the_run_and_leaves_it_to_go_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = outcome(federate(tmp_path / "whole", **TWO))
    checkpoint = ServerState.checkpoint

    def with_no_room(self: ServerState, server_round: int, *more: Any) -> None:
        if server_round < 2:
            return checkpoint(self, server_round, *more)
        with full_disk(4096):
            return checkpoint(self, server_round, *more)

    with monkeypatch.context() as patch:
        patch.setattr(ServerState, "checkpoint", with_no_room)
        with pytest.raises(FedfuseError, match="cannot be written"):
            federate(tmp_path, **TWO)
    folder = tmp_path / "quickstart"
    assert about(folder)["status"] == "failed"
    assert not list(folder.rglob(".*"))
    federate(tmp_path, **TWO, resume=str(folder))
    assert outcome(folder) == wanted


def test_too_few_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    among(monkeypatch, {}, {1: frozenset({1}), 2: frozenset({1})})
    with pytest.raises(
        FedfuseError, match=r"train.local: expected replies of at least 2 clients .* got 1"
    ):
        federate(tmp_path, **{**TWO, "min_clients": 2})

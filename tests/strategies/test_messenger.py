"""Replies are handed out as they arrive, and nothing depends on who was quicker."""

from __future__ import annotations

import json
import time
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.constant import OBJECT_PUSH_SESSION_TTL_SECONDS

from fedfuse.errors import FedfuseError
from fedfuse.simulation.in_process import InProcessGrid
from fedfuse.tracking.run_writer import RunWriter
from strategies.messenger import GRACE_SECONDS, Messenger
from tests.federations import federate, lines
from tests.strategies.test_faults import SHORT

NODES = 3


class LastFirst(InProcessGrid):
    """Only the last of the messages asked for has been answered yet."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return super().pull_messages(list(message_ids)[-1:])


def echo(message: Message, context: Context) -> Message:
    if context.node_config["partition-id"] == context.run_config["broken"]:
        raise RuntimeError("out of order")
    return Message(message.content, reply_to=message)


class Office:
    """A messenger with three clients, named in the order of their node ids."""

    def __init__(self, folder: Path, broken: int = -1, timeout: float = 60) -> None:
        app = ClientApp()
        app.query()(echo)
        partitions = [{"partition-id": number} for number in range(NODES)]
        self.grid = LastFirst(app, partitions, {"broken": broken})
        self.run = RunWriter(folder, "run", {})
        self.messenger = Messenger(self.grid, self.run, timeout)
        self.messenger.names = dict(zip(self.grid.get_node_ids(), "abc", strict=True))

    def messages(self) -> list[Message]:
        content = RecordDict({"config": ConfigRecord({"text": "hello"})})
        return [Message(content, node, "query") for node in self.grid.get_node_ids()]

    def message_log(self) -> list[str]:
        path = self.run.folder / "messages.jsonl"
        return [json.loads(x)["client"] for x in path.read_text().splitlines()]

    def names(self, replies: Iterable[Message]) -> Iterator[str]:
        return (self.messenger.name(reply.metadata.src_node_id) for reply in replies)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strategies.messenger.POLL_SECONDS", 0.001)


def test_a_reply_is_handed_out_and_written_down_when_it_is_there(tmp_path: Path) -> None:
    office = Office(tmp_path)
    arrivals = office.messenger.stream(1, office.messages())
    for client, written in zip("cba", ("c", "cb", "cba"), strict=True):
        assert list(office.names([next(arrivals)])) == [client]
        assert office.message_log() == list(written)
    assert list(arrivals) == []


def test_a_list_is_in_the_order_of_names(tmp_path: Path) -> None:
    office = Office(tmp_path)
    done: list[str] = []
    replies = office.messenger.send_and_receive(1, office.messages(), lambda: done.append("work"))
    assert list(office.names(replies)) == list("abc")
    assert office.message_log() == list("cba")
    assert done == ["work"]


def test_messages_leave_before_anybody_asks_for_replies(tmp_path: Path) -> None:
    office = Office(tmp_path)
    messages = office.messages()
    office.messenger.stream(1, messages)
    assert len(office.grid.pull_messages([m.metadata.message_id for m in messages])) == 1


def test_the_log_says_for_whom_the_server_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("strategies.messenger.PATIENCE_SECONDS", 0.0)
    office = Office(tmp_path)
    with caplog.at_level("INFO"):
        list(office.messenger.stream(1, office.messages()))
    told = [line for line in caplog.messages if "waiting" in line]
    assert told[0].startswith("query: waiting for 2 of 3 clients since ")
    assert [line.rpartition(": ")[2] for line in told] == ["a, b", "a"]


def test_a_reply_that_was_used_is_forgotten(tmp_path: Path) -> None:
    office = Office(tmp_path)
    arrivals = office.messenger.stream(1, office.messages())
    first = weakref.ref(next(arrivals).content)
    next(arrivals)
    assert first() is None


def test_waiting_is_told_from_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strategies.messenger.POLL_SECONDS", 0.2)
    office = Office(tmp_path)
    arrivals, started, worked = office.messenger.stream(1, office.messages()), time.monotonic(), 0.0
    for _ in arrivals:
        began = time.monotonic()
        time.sleep(0.1)
        worked += time.monotonic() - began
    assert arrivals.waited > 0.35
    assert time.monotonic() - started - arrivals.waited == pytest.approx(worked, abs=0.05)


def test_who_fails_is_not_among_them_and_too_few_are_an_error(tmp_path: Path) -> None:
    office = Office(tmp_path, broken=1)
    arrivals = office.messenger.stream(1, office.messages(), minimum=NODES)
    assert len(list(office.names([next(arrivals), next(arrivals)]))) == 2
    with pytest.raises(
        FedfuseError, match=r"query: expected replies of at least 3 clients .* got 2"
    ):
        next(arrivals)
    assert sorted(office.message_log()) == list("abc")


def test_who_answers_while_the_server_is_busy_is_not_late(tmp_path: Path) -> None:
    """At the deadline replies are asked for once more; who is then missing is written down."""
    office = Office(tmp_path, timeout=1)
    arrivals = office.messenger.stream(1, office.messages())
    assert list(office.names([next(arrivals)])) == ["c"]
    time.sleep(1.1)
    assert list(office.names(arrivals)) == ["b"]
    written = [
        json.loads(x) for x in (office.run.folder / "messages.jsonl").read_text().splitlines()
    ]
    assert [line["error"] for line in written] == [None, None, "no reply within 1 s"]


@pytest.mark.parametrize("strategy", ["fedmkt", "fedavg-lora"])
def test_results_do_not_depend_on_who_was_quicker(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {**SHORT, "strategy": strategy}
    if strategy == "fedavg-lora":
        keys["clients__model"] = "builtin:server"
    first = federate(tmp_path / "first", **keys)
    monkeypatch.setattr("fedfuse.simulation.in_process.InProcessGrid", LastFirst)
    last = federate(tmp_path / "last", **keys)
    order = [
        [x["client"] for x in lines(run, "messages") if x["phase"] == "train.local"]
        for run in (first, last)
    ]
    assert order[0] != order[1]
    for name in ("metrics", "teacher_shares"):
        path = f"{name}.jsonl"
        assert (first / path).exists() == (last / path).exists()
        if (first / path).exists():
            assert (first / path).read_text() == (last / path).read_text()
    assert not list(first.glob("candidates-*"))


def test_replies_outlive_one_that_is_half_there() -> None:
    """While Flower waits for the rest of it, it does not ask for the others."""
    assert GRACE_SECONDS > OBJECT_PUSH_SESSION_TTL_SECONDS

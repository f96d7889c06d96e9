"""The resident process answers as a new one would; test_deployment.py runs it for real."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode, SubStatus
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedfuse.deployment import worker
from fedfuse.deployment.worker import Worker, serve
from fedfuse.simulation.in_process import new_context


class Stop(Exception):
    """Ends a loop that has no end."""


class SuperNode:
    """What a SuperNode hands out and is handed back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, app: ClientApp) -> None:
        self.tasks: list[Any] = []
        self.replies: list[Message] = []
        self.outputs: list[tuple[Context | None, str, str]] = []
        self.context = new_context(1, 2, {"partition-id": 0}, {})
        self.loaded = 0
        fab = Fab("hash", b"", {})

        def load(run: Run, fab: Fab) -> ClientApp:
            self.loaded += 1
            return app

        def pull(client: Any) -> Any:
            message = Message(RecordDict(), 2, "train.local")
            message.metadata.__dict__["_message_id"] = "1"
            return message, self.context, Run.create_empty(1), fab

        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 2
        heartbeat = SimpleNamespace(start=lambda: None, stop=lambda: None)
        monkeypatch.setattr(worker, "HeartbeatSender", lambda function: heartbeat)
        monkeypatch.setattr(worker, "_connect", lambda address, token="": self)
        monkeypatch.setattr(worker, "_load", load)
        monkeypatch.setattr(worker, "pull_task_input", pull)
        monkeypatch.setattr(
            worker, "push_message", lambda c, reply, ctx: self.replies.append(reply)
        )
        monkeypatch.setattr(worker, "push_task_output", lambda c, *out: self.outputs.append(out))

    def AcquireTask(self, request: Any) -> Any:
        if not self.tasks:
            raise Stop
        return self.tasks.pop(0)

    def SendTaskHeartbeat(self, request: Any) -> None: ...

    def close(self) -> None: ...


def test_the_app_is_loaded_once_and_a_failure_is_a_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    app = ClientApp()
    broken = [False, True, False]

    @app.train("local")
    def local(message: Message, context: Context) -> Message:
        if broken.pop(0):
            raise RuntimeError("out of numbers")
        return Message(RecordDict(), reply_to=message)

    supernode = SuperNode(monkeypatch, app)
    resident = Worker("address")
    for _ in range(3):
        resident.answer("token")
    assert supernode.loaded == 1
    assert [reply.has_error() for reply in supernode.replies] == [False, True, False]
    error = supernode.replies[1].error
    assert error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert "out of numbers" in str(error.reason)
    contexts, status, details = zip(*supernode.outputs, strict=True)
    assert contexts == (supernode.context, None, supernode.context)
    assert status == (SubStatus.COMPLETED, SubStatus.FAILED, SubStatus.COMPLETED)
    assert "out of numbers" in details[1]


def test_another_version_of_the_app_restarts_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    app = ClientApp()

    @app.train("local")
    def local(message: Message, context: Context) -> Message:
        return Message(RecordDict(), reply_to=message)

    def execve(program: str, arguments: list[str], environment: dict[str, str]) -> None:
        restarted.append((program, arguments, environment["FEDFUSE_TASK_TOKEN"]))
        raise Stop

    restarted: list[Any] = []
    monkeypatch.setattr(worker.os, "execve", execve)
    supernode = SuperNode(monkeypatch, app)
    for token, fab in (("one", "hash"), ("", ""), ("two", "hash"), ("three", "other")):
        supernode.tasks.append(SimpleNamespace(token=token, task=SimpleNamespace(fab_hash=fab)))
    with pytest.raises(Stop):
        serve("address")
    assert len(supernode.replies) == 2
    assert restarted == [(sys.executable, sys.orig_argv, "three")]
    # The new process begins with the message that the old one had taken.
    monkeypatch.setenv("FEDFUSE_TASK_TOKEN", "three")
    with pytest.raises(Stop):
        serve("address")
    assert len(supernode.replies) == 3


def test_a_supernode_that_is_gone_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where it is gone when the worker hands in what it has, or stops its heartbeat."""
    app = ClientApp()

    @app.train("local")
    def local(message: Message, context: Context) -> Message:
        return Message(RecordDict(), reply_to=message)

    supernode = SuperNode(monkeypatch, app)
    told: list[str] = []

    def gone(*what: Any) -> Any:
        told.append(what[2] if len(what) > 2 and isinstance(what[2], str) else "")
        raise ConnectionError("gone")

    def ended() -> None:
        raise RuntimeError("Heartbeat sender is not running.")

    heartbeat = SimpleNamespace(start=lambda: None, stop=ended)
    monkeypatch.setattr(worker, "HeartbeatSender", lambda function: heartbeat)
    monkeypatch.setattr(worker, "push_task_output", gone)
    for place in ("push_message", "pull_task_input"):
        monkeypatch.setattr(worker, place, gone)
        Worker("address").answer("token")
    assert supernode.replies == []
    assert told == ["", SubStatus.FAILED, "", SubStatus.FAILED]


def test_an_app_is_loaded_with_its_own_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    for name in ("fedfuse", "fedfuse.errors", "clients.app", "fedfuseful"):
        sys.modules[name] = ModuleType(name)
    monkeypatch.setattr(worker, "install_from_fab", lambda content, skip_prompt: tmp_path)
    left: set[str] = set()

    def loader(**options: Any) -> Any:
        left.update(sys.modules)
        return lambda *identity: identity

    monkeypatch.setattr(worker, "get_load_client_app_fn", loader)
    run = Run.create_empty(1)
    run.fab_id, run.fab_version = "id", "version"
    assert worker._load(run, Fab("hash", b"", {})) == ("id", "version", "hash")
    assert "fedfuseful" in left
    assert not {name for name in left if name.partition(".")[0] in ("fedfuse", "clients")}

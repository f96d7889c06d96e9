"""A run whose server was killed goes on as if nothing had happened, bit for bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from clients.app import app as client_app
from fedfuse.errors import FedfuseError
from fedfuse.flower import grid
from fedfuse.report.reading import read_run
from tests.federations import about, federate, lines
from tests.strategies.saboteur import sabotage

SHORT: dict[str, Any] = {
    "rounds": 2,
    "baselines": False,
    "clients": 2,
    "data__domains": 2,
    "data__questions": 1,
    "local__steps": 2,
    "server_distill__steps": 2,
    "client_distill__steps": 2,
}
KINDS: dict[str, dict[str, Any]] = {
    "fedmkt": {"strategy": "fedmkt", "knowledge__freshness": 1e-2},
    "fedfuse": {"strategy": "fedfuse", "selector__steps": 2, "selector__folds": 2},
}
FINDINGS = ("metrics", "selection", "selectors")


class Killed(BaseException):
    """The server's process ends here."""


def outcome(folder: Path) -> dict[str, bytes]:
    """All that a run found out: every adapter, every measurement."""
    files = [*folder.rglob("adapter_model.safetensors"), *(folder / f"{n}.jsonl" for n in FINDINGS)]
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(files) if f.exists()}


def killing(place: int, end: Callable[[], None]) -> type[grid.InProcessGrid]:
    """A grid under which the server ends before it sends, or gets, its message of this number."""
    count = 0

    class Killing(grid.InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            self.tick()
            return super().push_messages(messages)

        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            replies = []
            for message_id in message_ids:
                replies += super().pull_messages([message_id])
                self.tick()
            return replies

        def tick(self) -> None:
            nonlocal count
            count += 1
            if count == place:
                end()

    return Killing


def raise_killed() -> None:
    raise Killed


@pytest.fixture(scope="module", params=list(KINDS))
def undisturbed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The keys of a run, and what it finds out."""
    keys = {**SHORT, **KINDS[request.param]}
    return keys, outcome(federate(tmp_path_factory.mktemp("whole"), **keys))


# A phase is one message sent and two received: registration and round 0 take 6 ticks, a round 9.
@pytest.mark.parametrize("place", [2, 5, 9, 15, 18, 23])
def test_a_killed_server_goes_on_bit_for_bit(
    place: int,
    undisturbed: tuple[dict[str, Any], dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys, wanted = undisturbed
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(grid, "InProcessGrid", killing(place, raise_killed))
        federate(tmp_path, **keys)
    folder = tmp_path / "quickstart"
    assert outcome(folder) != wanted
    federate(tmp_path, **keys, resume=str(folder))
    assert outcome(folder) == wanted
    assert about(folder)["status"] == "finished"
    [event] = lines(folder, "events")
    done = -1 if place <= 6 else 0 if place <= 15 else 1
    assert event["event"] == "resumed"
    assert event["detail"] == ("from the beginning" if done < 0 else f"after round {done}")
    assert not list(folder.glob("candidates-*"))
    assert len(list((folder / "server" / "checkpoints").iterdir())) == 2
    assert read_run(folder).events

"""A run that tunes a prompt goes on after its last whole round, and pays for nothing twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedfuse.tracking.checkpoints import Checkpoints
from tests.federations import about, federate, lines
from tests.prompt_federations import KEYS
from tests.prompt_federations import tiny_world as tiny_world
from tests.strategies.test_resume import cut_off

pytestmark = pytest.mark.usefixtures("tiny_world")
SHORT: dict[str, Any] = {
    **KEYS,
    "rounds": 2,
    "clients": 2,
    "feddtpt__search__queries": 24,
    "feddtpt__search__patience": 2,
}


def outcome(folder: Path) -> list[Any]:
    """All that a run found out, and what it paid for it."""
    kept = Checkpoints(folder / "server" / "checkpoints").latest()
    assert kept is not None
    state = {name: value.tobytes() for name, value in kept.arrays.items()}
    prompt = (folder / "server" / "prompt.json").read_text()
    found = lines(folder, "prompts"), lines(folder, "aggregations")
    return [*found, state, kept.facts["result"], prompt]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_world: None) -> list[Any]:
    return outcome(federate(tmp_path_factory.mktemp("whole"), **SHORT))


# A phase is one message sent and two received: registration and round 0 take 6 ticks, a round 6.
@pytest.mark.parametrize(("place", "done"), [(5, None), (9, 0), (15, 1)])
def test_a_killed_server_goes_on_with_the_same_prompts_and_queries(
    place: int,
    done: int | None,
    undisturbed: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = cut_off(place, tmp_path, monkeypatch, **SHORT)
    federate(tmp_path, **SHORT, resume=str(folder))
    assert outcome(folder) == undisturbed
    assert about(folder)["status"] == "finished"
    [event] = lines(folder, "events")
    assert event["event"] == "resumed"
    assert event["detail"] == ("from the beginning" if done is None else f"after round {done}")

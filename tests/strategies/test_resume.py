"""A run whose server was killed goes on as if nothing had happened, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from flwr.app import Message

from experiments.faults.fleet import Killed
from experiments.faults.run import outcome
from fedfuse.errors import FedfuseError
from fedfuse.factory.data import load_splits, shared_samples
from fedfuse.models.adapter_folder import weights_fingerprint
from fedfuse.simulation import in_process as grid
from fedfuse.simulation.simulate import resume_config
from fedfuse.tracking.run import read_run
from fedfuse.tracking.run_writer import RunWriter
from strategies.base import BaseStrategy
from strategies.results import METRICS
from tests.federations import about, federate, lines

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
    "fedmkt": {"strategy": "fedmkt", "knowledge__delta_threshold": 1e-2},
    "fedfuse": {
        "strategy": "fedfuse",
        "fusion__server_rule": "learned-gate",
        "fusion__evidence": "blind",
        "data__blind": 4,
        "gate__steps": 2,
        "gate__folds": 2,
    },
}


def killing(place: int) -> type[grid.InProcessGrid]:
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
                raise Killed

    return Killing


def cut_off(place: int, output: Path, monkeypatch: pytest.MonkeyPatch, **keys: Any) -> Path:
    """A run whose server is killed; returns its folder."""
    with monkeypatch.context() as patch:
        patch.setattr(grid, "InProcessGrid", killing(place))
        with pytest.raises(Killed):
            federate(output, **keys)
    return output / "quickstart"


@pytest.fixture(scope="module", params=list(KINDS))
def undisturbed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, str]]:
    """The keys of a run, and what it finds out."""
    keys = {**SHORT, **KINDS[request.param]}
    return keys, outcome(federate(tmp_path_factory.mktemp("whole"), **keys))


# A phase is one message sent and two received: registration and round 0 take 6 ticks, a round 9.
@pytest.mark.parametrize("place", [2, 5, 9, 15, 18, 23])
def test_a_killed_server_goes_on_bit_for_bit(
    place: int,
    undisturbed: tuple[dict[str, Any], dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys, wanted = undisturbed
    folder = cut_off(place, tmp_path, monkeypatch, **keys)
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


def events(folder: Path) -> list[tuple[str, str, str]]:
    return [(x["event"], x["client"], x["detail"]) for x in lines(folder, "events")]


def flip(path: Path) -> None:
    """Turn the last bit of a file over."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("undisturbed", ["fedmkt"], indirect=True)
def test_a_damaged_checkpoint_costs_a_round(
    undisturbed: tuple[dict[str, Any], dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The round before is gone on from, by the clients too, who are two rounds ahead by then."""
    keys, wanted = undisturbed
    folder = cut_off(20, tmp_path, monkeypatch, **keys)
    flip(folder / "server" / "checkpoints" / "round-1.safetensors")
    federate(tmp_path, **keys, resume=str(folder))
    assert outcome(folder) == wanted
    [damage, resumed] = events(folder)
    assert damage[:2] == ("damaged", "server")
    assert "round-1.safetensors" in damage[2]
    assert resumed == ("resumed", "server", "after round 0")


@pytest.mark.parametrize("undisturbed", ["fedmkt"], indirect=True)
@pytest.mark.parametrize("loss", ["all", "damaged"])
def test_a_client_that_lost_its_state_says_so(
    loss: str,
    undisturbed: tuple[dict[str, Any], dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys, wanted = undisturbed
    folder = cut_off(18, tmp_path, monkeypatch, **keys)
    state = folder / "clients" / "1" / "state"
    assert sorted(path.name for path in state.iterdir()) == [
        f"round-{number}.safetensors" for number in (0, 1, 2)
    ]
    if loss == "all":
        shutil.rmtree(state)
    else:
        flip(state / "round-1.safetensors")
    federate(tmp_path, **keys, resume=str(folder))
    assert outcome(folder) != wanted
    assert about(folder)["status"] == "finished"
    found = [event[:2] for event in events(folder)]
    if loss == "all":
        assert found == [("resumed", "server"), ("lost", "1")]
    else:
        assert found == [("resumed", "server"), ("damaged", "1"), ("returned", "1")]
        assert events(folder)[-1][2] == "with its state of round 0"


@pytest.mark.parametrize("undisturbed", ["fedmkt"], indirect=True)
def test_clients_that_are_still_there_go_back_as_well(
    undisturbed: tuple[dict[str, Any], dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With all that they remember of a round that the server does not know of."""
    keys, wanted = undisturbed
    kept: list[dict[int, bytes]] = []

    class Lasting(killing(18)):  # type: ignore[misc]
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            for node, packed in kept[0].items() if kept else ():
                state = grid._unpack(packed).state
                context = grid._unpack(self._contexts[node])
                assert len(state) > 3
                context.state.update(state)
                self._contexts[node] = grid._pack(context)
            kept.append(self._contexts)

    monkeypatch.setattr(grid, "InProcessGrid", Lasting)
    with pytest.raises(Killed):
        federate(tmp_path, **keys)
    federate(tmp_path, **keys, resume=str(tmp_path / "quickstart"))
    assert outcome(tmp_path / "quickstart") == wanted


def test_another_run_of_the_name_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine may still have what a client of an earlier run left, under the same name."""
    keys = {**SHORT, "rounds": 1}
    wanted = outcome(federate(tmp_path / "whole", **keys))
    other = federate(tmp_path / "other", **keys, seed=1)
    make = RunWriter.__init__

    def make_among(self: RunWriter, *arguments: Any) -> None:
        make(self, *arguments)
        shutil.copytree(other / "clients", self.folder / "clients")

    monkeypatch.setattr(RunWriter, "__init__", make_among)
    folder = federate(tmp_path / "again", **keys)
    assert outcome(folder) == wanted
    assert not (folder / "events.jsonl").exists()


def test_what_cannot_go_on_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cut_off(12, tmp_path, monkeypatch, **SHORT)
    keys = {**SHORT, "resume": str(folder)}
    with pytest.raises(FedfuseError, match=r"another config:\n  seed: expected 0, got 5"):
        federate(tmp_path, **keys, seed=5)
    config, clients = resume_config(folder, 9)
    assert (config.resume, config.rounds, clients) == (str(folder), 2, 2)
    about_run = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about_run | {"status": "finished"}))
    with pytest.raises(
        FedfuseError, match="expected a run that was cut off, got one that has finished"
    ):
        federate(tmp_path, **keys)
    with pytest.raises(FedfuseError, match=r"config.json: expected UTF-8 text, got .*No such file"):
        federate(tmp_path, **{**keys, "resume": str(tmp_path)})


def test_two_servers_do_not_write_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cut_off(12, tmp_path, monkeypatch, **SHORT)
    with FileLock(folder / "lock"), pytest.raises(FedfuseError, match="another server"):
        federate(tmp_path, **SHORT, resume=str(folder))


def test_the_result_knows_of_the_rounds_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[Any] = []
    start = BaseStrategy.start
    monkeypatch.setattr(
        BaseStrategy, "start", lambda *a, **k: results.append(start(*a, **k)) or results[-1]
    )
    federate(tmp_path / "whole", **SHORT)
    folder = cut_off(20, tmp_path, monkeypatch, **SHORT)
    federate(tmp_path, **SHORT, resume=str(folder))
    whole, resumed = results
    assert set(whole.evaluate_metrics_clientapp) == {0, 1, 2}
    for name in METRICS:
        assert getattr(resumed, name) == getattr(whole, name)
    assert resumed.arrays == whole.arrays


def jsonl(path: Path, samples: range) -> None:
    path.mkdir(exist_ok=True)
    for split in ("train", "test"):
        rows = [{"question": f"{split} {i}?", "target": f"yes {i % 7}"} for i in samples]
        (path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.usefixtures("tiny_builtin")
@pytest.mark.parametrize("change", ["deleted", "moved", "nothing"])
def test_changed_data_is_refused_by_name(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    jsonl(data, range(120))
    sizes = {"public": 20, "private": 20, "test": 10, "holdout": 2, "questions": 0}
    keys = {**SHORT, **{f"data__{name}": size for name, size in sizes.items()}}
    keys = {key: value for key, value in keys.items() if key != "data__domains"}
    keys |= {"data__source": str(data), "data__partition": "iid"}
    folder = cut_off(12, tmp_path, monkeypatch, **keys)
    lines_of = (data / "train.jsonl").read_text().splitlines(keepends=True)
    if change == "deleted":
        lines_of = lines_of[20:]
    if change == "moved":
        lines_of.reverse()
    (data / "train.jsonl").write_text("".join(lines_of))
    load_splits.cache_clear()  # another process has none
    shared_samples.cache_clear()

    if change == "nothing":
        federate(tmp_path, **keys, resume=str(folder))
        assert about(folder)["status"] == "finished"
        return
    with pytest.raises(FedfuseError, match=r"what the run began with, got changed ones: .*samples"):
        federate(tmp_path, **keys, resume=str(folder))
    assert about(folder)["status"] != "finished"


@pytest.mark.parametrize("what", ["tokenizer", "model"])
def test_what_changed_at_a_client_is_refused_by_name(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cut_off(12, tmp_path, monkeypatch, **SHORT)
    if what == "tokenizer":
        known = about(folder)
        known["content"]["tokenizer_of_client_0"] = "another"
        (folder / "config.json").write_text(json.dumps(known))
        expected = "got changed ones: tokenizer of client 0"
    else:
        monkeypatch.setattr(
            "fedfuse.algorithms.local_model.weights_fingerprint",
            lambda name: weights_fingerprint(name) if "server" in name else "another",
        )
        expected = "client 0: model: expected those that the run began with"
    with pytest.raises(FedfuseError):
        federate(tmp_path, **SHORT, resume=str(folder))
    refused = [line["error"] for line in lines(folder, "messages") if line["error"]]
    assert any(expected in error for error in refused), refused

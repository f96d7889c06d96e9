"""Rounds about some of the public samples, and rows that are not told twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from fedfuse.flower.messages import unpack_knowledge
from fedfuse.knowledge import payload
from fedfuse.knowledge.delta import Delta
from fedfuse.knowledge.record import Knowledge
from strategies.fedmkt import FedMKT
from tests.federations import federate, lines
from tests.strategies.saboteur import sabotage

SHORT: dict[str, Any] = {
    "rounds": 3,
    "baselines": False,
    "clients": 2,
    "data__domains": 2,
    "data__public": 60,
    "data__questions": 1,
    "local__steps": 2,
    "server_distill__steps": 2,
    "client_distill__steps": 2,
}
# About as much as a row moves in these few steps.
SMALL = 1e-2


def traffic(folder: Path, phase: str, field: str) -> dict[int, int]:
    """Bytes of a phase in each round."""
    found: dict[int, int] = {}
    for line in lines(folder, "messages"):
        if line["phase"] == phase:
            assert line["error"] is None
            found[line["round"]] = found.get(line["round"], 0) + line[field]
    return found


def test_a_round_is_about_some_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Knowledge] = []
    receive = FedMKT.receive

    def watch(self: FedMKT, reply: Message) -> Knowledge:
        seen.append(receive(self, reply))
        return seen[-1]

    monkeypatch.setattr(FedMKT, "receive", watch)
    folder = federate(tmp_path, **SHORT, knowledge__public_share=1 / 3)
    assert [knowledge.num_samples for knowledge in seen] == [40] * 6  # of 120
    rounds = [knowledge.public for knowledge in seen]
    assert rounds[0] == rounds[1]
    assert len(set(rounds)) == 3
    whole = federate(tmp_path, **SHORT, name="whole")
    for phase, field in (("train.local", "received_bytes"), ("train.distill", "sent_bytes")):
        less, all_of_it = traffic(folder, phase, field), traffic(whole, phase, field)
        assert all(less[r] < all_of_it[r] for r in (1, 2, 3))


def test_what_stays_is_not_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A threshold of nearly zero tells what moved; one of all tells nothing new."""
    told = {}
    for threshold in (0.0, 1e-6, SMALL, 1.0):
        folder = federate(
            tmp_path, **SHORT, name=f"f{threshold}", knowledge__delta_threshold=threshold
        )
        told[threshold] = traffic(folder, "train.local", "received_bytes")
        down = traffic(folder, "train.distill", "sent_bytes")
        if threshold == 1.0:
            assert down[2] < down[1]
        held = [path.name[:2] for path in (folder / "server" / "knowledge").glob("*.npz")]
        assert set(held) == ({"0-", "1-"} if threshold else set())
        assert len(held) <= 4  # of this checkpoint and the one before
    assert told[0.0][1] == pytest.approx(told[1.0][1], rel=0.02)
    assert told[1.0][2] < 0.5 * told[1.0][1]
    assert told[1.0][2] < told[SMALL][2] < told[0.0][2]
    assert told[1e-6][3] == pytest.approx(told[0.0][3], rel=0.1)


def test_both_sides_hold_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second round on, changes alone travel, both ways."""
    updates: list[Delta] = []
    apply_delta = payload.apply_delta

    def watch(before: Knowledge, update: Delta) -> Knowledge:
        updates.append(update)
        held: Knowledge = apply_delta(before, update)
        return held

    monkeypatch.setattr(payload, "apply_delta", watch)
    federate(tmp_path, **SHORT, knowledge__delta_threshold=SMALL)
    # A round: each client writes and reads its own; the server reads both, writes and reads its
    # own; each client reads it. Two rounds after the first.
    assert len(updates) == 2 * (2 + 2 + 1 + 2)
    assert [0 < update.row_mask.mean() < 1 for update in updates] == [True] * 14, [
        u.row_mask.mean() for u in updates
    ]


def test_a_client_that_forgets_is_told_everything(tmp_path: Path) -> None:
    def forget(kind: str, reply: Message) -> None:
        if kind == "train.local" and "info" in reply.content:
            reply.content["info"]["cache-digest"] = ""  # type: ignore[index]

    folder = federate(tmp_path, **SHORT, knowledge__delta_threshold=1.0, app=sabotage({0: forget}))
    sent: dict[str, list[int]] = {}
    for line in lines(folder, "messages"):
        if line["phase"] == "train.distill":
            assert line["error"] is None
            sent.setdefault(line["client"], []).append(line["sent_bytes"])
    assert sent["1"][1] < sent["1"][0]
    assert sent["0"][1] == pytest.approx(sent["0"][0], rel=0.02)


def test_a_refused_update_is_followed_by_everything(tmp_path: Path) -> None:
    """The server then holds less than the client believes, and says so."""
    changes: list[bool] = []

    def spoil(kind: str, reply: Message) -> None:
        if kind == "train.local":
            changes.append(bool(unpack_knowledge(reply.content).base))
            if len(changes) == 2:
                del reply.content["metrics"]

    keys = SHORT | {"rounds": 4, "min_clients": 1, "knowledge__delta_threshold": SMALL}
    federate(tmp_path, **keys, app=sabotage({0: spoil}))
    assert changes == [False, True, False, True]


def test_labels_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ALM needs a byte or two of a label, and teaches with them."""
    seen: list[Knowledge] = []
    receive = FedMKT.receive

    def watch(self: FedMKT, reply: Message) -> Knowledge:
        seen.append(receive(self, reply))
        return seen[-1]

    monkeypatch.setattr(FedMKT, "receive", watch)
    keys: dict[str, Any] = SHORT | {"rounds": 1, "data__public": 1000}
    small: dict[str, Any] = {"knowledge__k": 0, "knowledge__logprob_bits": 8}
    folder = federate(tmp_path, **keys, **small, knowledge__alignment="alm")
    assert [knowledge.k for knowledge in seen] == [0, 0]
    rows = sum(knowledge.num_rows for knowledge in seen)
    # Of a sample besides: its number of rows and bytes, compressed.
    assert traffic(folder, "train.distill", "sent_bytes")[1] < 2 * rows
    shares = {line["teacher"]: line["share"] for line in lines(folder, "teacher_shares")}
    assert max(shares["0"], shares["1"]) > 0

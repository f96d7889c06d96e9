"""A client that fails, lies or talks rubbish costs the round its own reply and nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Message, MetricRecord

from fedfuse.errors import FedfuseError
from fedfuse.flower.messages import pack_knowledge, unpack_knowledge
from fedfuse.knowledge.payload import decode, encode_full
from fedfuse.knowledge.record import Knowledge
from fedfuse.tracking.run import read_run
from tests.federations import about, federate, lines
from tests.strategies.saboteur import Deed, sabotage

SHORT: dict[str, Any] = {
    "rounds": 1,
    "baselines": False,
    "clients": 3,
    "data__domains": 2,
    "data__partition": "iid",
    "data__questions": 1,
    "local__steps": 1,
    "server_distill__steps": 1,
    "client_distill__steps": 1,
}


def change(kind: str, record: str, field: str, edit: Callable[[np.ndarray], np.ndarray]) -> Deed:
    """Edit one array of one kind of reply."""

    def deed(replied: str, reply: Message) -> None:
        if replied == kind:
            arrays = reply.content.array_records[record]
            arrays[field] = Array(edit(arrays[field].numpy()))

    return deed


def raises(kind: str) -> Deed:
    def deed(replied: str, reply: Message) -> None:
        if replied == kind:
            raise RuntimeError("out of memory")

    return deed


def errors(folder: Path) -> list[tuple[str, str, str]]:
    """Phase, client and error of every line of messages.jsonl that has one."""
    return [(x["phase"], x["client"], x["error"]) for x in lines(folder, "messages") if x["error"]]


def teachers(folder: Path) -> set[str]:
    return {x["teacher"] for x in lines(folder, "teacher_shares") if x["direction"] == "up"}


def damaged(edit: Callable[[np.ndarray], np.ndarray]) -> Deed:
    return change("train.local", "knowledge", "message", edit)


def lie(edit: Callable[[Knowledge], Knowledge]) -> Deed:
    """Other knowledge, in good form."""

    def deed(kind: str, reply: Message) -> None:
        if kind == "train.local":
            told = edit(decode(unpack_knowledge(reply.content)))
            pack_knowledge(reply.content, encode_full(told, 16, 1.0))

    return deed


def flattered(k: Knowledge) -> Knowledge:
    """Every label is said to be the most likely token."""
    return replace(k, label_logprob=k.logprobs[:, 0])


def moved_rows(k: Knowledge) -> Knowledge:
    """The first sample's last row is said to be the second's."""
    offsets = k.offsets.copy()
    offsets[1] -= 1
    return replace(k, offsets=offsets)


def drop_knowledge(kind: str, reply: Message) -> None:
    if kind == "train.local":
        del reply.content["knowledge"]


def other_version(message: np.ndarray) -> np.ndarray:
    edited = message.copy()
    edited[4] = 99
    return edited


def loses_knowledge_of_metrics(kind: str, reply: Message) -> None:
    if kind == "train.local":
        del reply.content["metrics"]


@pytest.mark.parametrize(
    ("deed", "error"),
    [
        (raises("train.local"), "out of memory"),
        (lie(flattered), "knowledge.label_logprob claims"),
        (lie(moved_rows), "knowledge.offsets is"),
        (lie(lambda k: replace(k, label_bytes=k.label_bytes * 9)), "knowledge.label_bytes is"),
        (lie(lambda k: replace(k, indices=k.indices + 60_000)), "knowledge.indices: expected"),
        (lie(lambda k: replace(k, public="another")), "knowledge.public: expected"),
        (damaged(lambda a: a[:-1]), "knowledge.checksum: expected"),
        (damaged(lambda a: a ^ (np.arange(len(a)) == 700)), "knowledge.checksum: expected"),
        (
            damaged(lambda a: a.astype(np.float64)),
            "knowledge.message: expected 1-dimensional uint8, got float64",
        ),
        (drop_knowledge, "expected knowledge"),
        (damaged(other_version), "expected codec version 2, got 99"),
    ],
)
def test_bad_knowledge_teaches_nobody(deed: Deed, error: str, tmp_path: Path) -> None:
    folder = federate(tmp_path, app=sabotage({1: deed}), **SHORT)
    [(phase, client, found)] = errors(folder)
    assert (phase, client) == ("train.local", "1")
    assert error in found
    assert found.startswith(("out of memory", "refused: "))
    assert teachers(folder) <= {"0", "2", "none"}
    assert about(folder)["status"] == "finished"
    # Whoever failed at one message is asked again at the next.
    evaluated = {x["model"] for x in lines(folder, "metrics") if x["stage"] == "federated"}
    assert evaluated == {"server", "0", "1", "2"}
    assert read_run(folder).messages


def broken_tokenizer(kind: str, reply: Message) -> None:
    if kind == "query.register":
        reply.content["tokenizer"] = ConfigRecord({"json": json.dumps({"model": "none"})})


def no_info(kind: str, reply: Message) -> None:
    if kind == "query.register":
        del reply.content["info"]


@pytest.mark.parametrize(
    ("deed", "times"), [(broken_tokenizer, 1), (no_info, 1), (raises("query.register"), 2)]
)
def test_who_cannot_register_does_not_take_part(deed: Deed, times: int, tmp_path: Path) -> None:
    """Who did not answer is asked again at the next round, who was refused is not."""
    folder = federate(tmp_path, app=sabotage({2: deed}), **SHORT)
    assert len(errors(folder)) == times
    assert set(about(folder)["models"]) == {"server", "0", "1"}
    assert {x["client"] for x in lines(folder, "messages") if x["round"]} == {"server", "0", "1"}


def test_a_partition_is_taken_once(tmp_path: Path) -> None:
    folder = federate(tmp_path, app=sabotage({}, partition_of={2: 0}), **SHORT)
    refused = {(phase, error) for phase, _, error in errors(folder)}  # it asks again every round
    assert refused == {("query.register", "refused: partition 0 is taken by another client")}
    assert set(about(folder)["models"]) == {"server", "0", "1"}


@pytest.mark.parametrize("kind", ["train.distill", "evaluate", "train.baseline"])
def test_a_client_may_fail_in_any_phase(kind: str, tmp_path: Path) -> None:
    keys = {**SHORT, "baselines": kind == "train.baseline"}
    folder = federate(tmp_path, app=sabotage({0: raises(kind)}), **keys)
    assert {(p, c) for p, c, _ in errors(folder)} == {(kind, "0")}
    assert about(folder)["status"] == "finished"


def bad_scores(kind: str, reply: Message) -> None:
    if kind == "evaluate":
        metrics = reply.content.metric_records["metrics"]
        reply.content["metrics"] = MetricRecord(dict.fromkeys(metrics, math.nan))


def no_scores(kind: str, reply: Message) -> None:
    if kind == "evaluate":
        del reply.content["metrics"]


def no_teacher_shares(kind: str, reply: Message) -> None:
    if kind == "train.distill":
        del reply.content["teacher-shares"]


@pytest.mark.parametrize(
    "deed", [bad_scores, no_scores, no_teacher_shares, loses_knowledge_of_metrics]
)
def test_a_reply_without_its_numbers_does_not_end_the_run(deed: Deed, tmp_path: Path) -> None:
    folder = federate(tmp_path, app=sabotage({1: deed}), **SHORT)
    assert {client for _, client, _ in errors(folder)} == {"1"}
    assert about(folder)["status"] == "finished"
    read_run(folder)


@pytest.mark.parametrize("kind", ["query.register", "train.local", "train.distill"])
def test_too_few_clients_end_the_run(kind: str, tmp_path: Path) -> None:
    app = sabotage({0: raises(kind), 1: raises(kind)})
    with pytest.raises(
        FedfuseError, match=rf"{kind}: expected replies of at least 2 clients .* got 1"
    ):
        federate(tmp_path, app=app, **SHORT)
    assert about(tmp_path / "quickstart")["status"] == "failed"


def test_too_little_usable_knowledge_ends_the_run(tmp_path: Path) -> None:
    app = sabotage({0: drop_knowledge, 1: drop_knowledge})
    with pytest.raises(
        FedfuseError, match=r"usable knowledge of at least 2 clients \(min-clients\), got 1"
    ):
        federate(tmp_path, app=app, **SHORT)
    assert about(tmp_path / "quickstart")["status"] == "failed"


def rotten_adapter(edit: Callable[[np.ndarray], np.ndarray]) -> Deed:
    def deed(kind: str, reply: Message) -> None:
        if kind == "train.local":
            arrays = reply.content.array_records["adapter"]
            name = sorted(arrays)[0]
            arrays[name] = Array(edit(arrays[name].numpy()))

    return deed


def boasts(count: float) -> Deed:
    def deed(kind: str, reply: Message) -> None:
        if kind == "train.local":
            reply.content.metric_records["metrics"]["num-examples"] = count

    return deed


@pytest.mark.parametrize(
    ("deed", "error"),
    [
        (rotten_adapter(lambda a: np.full_like(a, np.nan)), "not finite"),
        (rotten_adapter(lambda a: a[:-1]), "does not fit"),
        *((boasts(count), "num-examples") for count in (math.inf, 1e308, 1e6, 0.5, 0.0, -3.0)),
    ],
)
def test_a_bad_adapter_is_not_averaged(deed: Deed, error: str, tmp_path: Path) -> None:
    keys = {**SHORT, "strategy": "fedavg-lora", "clients__model": "builtin:server"}
    folder = federate(tmp_path, app=sabotage({1: deed}), **keys)
    [(phase, client, found)] = errors(folder)
    assert (phase, client) == ("train.local", "1")
    assert error in found


@pytest.mark.parametrize("count", [1e308, math.inf, 0.0])
def test_a_client_without_a_sensible_number_of_samples_takes_no_part(
    count: float, tmp_path: Path
) -> None:
    def deed(kind: str, reply: Message) -> None:
        if kind == "query.register":
            reply.content.metric_records["metrics"]["private-samples"] = count

    keys = {**SHORT, "strategy": "fedavg-lora", "clients__model": "builtin:server", "clients": 3}
    folder = federate(tmp_path, app=sabotage({1: deed}), **keys)
    [(phase, _, found)] = set(errors(folder))
    assert phase == "query.register"
    assert "private-samples" in found

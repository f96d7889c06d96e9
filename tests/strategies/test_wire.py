"""What a federation loses by telling knowledge in fewer bytes, and what messages.jsonl shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedfuse.knowledge import payload as payload
from fedfuse.knowledge.quantizer import QUANTIZERS
from fedfuse.knowledge.record import Knowledge
from tests.federations import federate, lines

LEARNS: dict[str, Any] = {
    "rounds": 1,
    "baselines": False,
    "clients": 2,
    "data__domains": 2,
    "data__public": 12,
    "data__questions": 1,
    "local__steps": 30,
    "server_distill__steps": 30,
    "client_distill__steps": 30,
    "knowledge__k": 16,
}


Run = tuple[dict[tuple[str, str], float], dict[str, int]]


def run(output: Path, **keys: Any) -> Run:
    """Final losses by model and domain, and bytes of knowledge up and down."""
    folder = federate(output, **LEARNS, **keys)
    final = [line for line in lines(folder, "metrics") if line["stage"] == "federated"]
    message_log = lines(folder, "messages")
    size = {
        "up": sum(x["received_bytes"] for x in message_log if x["phase"] == "train.local"),
        "down": sum(x["sent_bytes"] for x in message_log if x["phase"] == "train.distill"),
    }
    return {(x["model"], x["domain"]): x["loss"] for x in final}, size


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], float]:
    """Losses when knowledge stays what it is, in float32."""
    kept: list[Knowledge] = []

    def encode(knowledge: Knowledge, logprob_bits: int) -> bytes:
        kept.append(knowledge)
        return bytes([len(kept) - 1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(payload.codec, "encode", encode)
        patch.setattr(payload.codec, "decode", lambda message, **_: kept[message[0]])
        losses, _ = run(tmp_path_factory.mktemp("exact"), knowledge__top_p=1.0)
    assert len(kept) == 3
    return losses


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Run]:
    """Losses and bytes of each number of bits, at the default top-p."""
    folder = tmp_path_factory.mktemp("sent")
    return {
        bits: run(folder, name=f"{bits} bits", knowledge__logprob_bits=bits) for bits in QUANTIZERS
    }


@pytest.mark.parametrize("bits", QUANTIZERS)
def test_students_lose_less_than_a_hundredth(
    bits: int, exact: dict[tuple[str, str], float], sent: dict[int, Run]
) -> None:
    losses, _ = sent[bits]
    assert losses.keys() == exact.keys()
    for key, loss in losses.items():
        assert loss == pytest.approx(exact[key], rel=0.01)


def test_messages_count_what_was_saved(sent: dict[int, Run]) -> None:
    default, compact = (sent[bits][1] for bits in (16, 8))
    assert compact["up"] < 0.9 * default["up"]
    assert compact["down"] < 0.9 * default["down"]

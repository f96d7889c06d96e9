"""Letters: what both sides hold afterwards is the same, whichever way it was told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedfuse.errors import FedfuseError
from fedfuse.knowledge import codec
from fedfuse.knowledge.delta import digest, distances
from fedfuse.knowledge.payload import decode, encode_delta, encode_full
from fedfuse.knowledge.record import Knowledge
from fedfuse.knowledge.top_p import trim
from tests.knowledge.conftest import VOCAB, random_knowledge


def moved(before: Knowledge, rows: int, seed: int = 5) -> Knowledge:
    """The same knowledge but for its first rows."""
    other = random_knowledge(seed, rows=before.num_rows, k=before.k)
    first = np.arange(before.num_rows) < rows
    return replace(
        before,
        indices=np.where(first[:, None], other.indices, before.indices),
        logprobs=np.where(first[:, None], other.logprobs, before.logprobs),
        tail_logprob=np.where(first, other.tail_logprob, before.tail_logprob),
        label_logprob=np.where(first, other.label_logprob, before.label_logprob),
    )


def test_a_whole_letter_needs_nothing() -> None:
    knowledge = random_knowledge()
    found = decode(encode_full(knowledge, 16, 0.9))
    assert digest(found) == digest(codec.decode(codec.encode(trim(knowledge, 0.9))))


def test_what_is_not_expected_is_refused() -> None:
    payload = encode_full(random_knowledge(rows=7, k=4), 16, 1.0)
    with pytest.raises(FedfuseError, match=r"knowledge\.num_rows: expected 8, got 7"):
        decode(payload, num_rows=8)
    with pytest.raises(FedfuseError, match=r"knowledge\.k: expected at most 3, got 4"):
        decode(payload, k=3)


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("rows", [0, 3, 100])
def test_only_what_changed_is_told(rows: int, bits: int) -> None:
    before = random_knowledge(rows=100, samples=5)
    held = decode(encode_full(before, bits, 1.0))
    now = moved(before, rows)
    payload = encode_delta(now, held, 0.2, bits, 1.0)
    assert np.unpackbits(np.frombuffer(payload.row_mask, np.uint8)).sum() == rows
    assert len(payload.message) < len(encode_full(now, bits, 1.0).message) or rows == 100
    after = decode(payload, held, num_rows=100, k=4)
    after.validate(vocab_size=VOCAB, tokenizer="tokenizer", public="public", num_rows=100)
    assert distances(after, now).max() < 0.02
    # Told twice, nothing is new.
    again = encode_delta(now, after, 0.2, bits, 1.0)
    assert not any(again.row_mask)


def test_small_changes_do_not_add_up() -> None:
    """What is compared is what the receiver holds, not what the sender had a round ago."""
    held = random_knowledge(rows=1, samples=1, k=2)
    held.logprobs[0], held.tail_logprob[0] = np.log([0.6, 0.3]), np.log(0.1)
    told = []
    for step in range(1, 5):
        logprobs = np.log(np.array([[0.6 - 0.04 * step, 0.3 + 0.04 * step]], dtype=np.float32))
        now = replace(held, logprobs=logprobs, label_logprob=logprobs[:, 1])
        payload = encode_delta(now, held, 0.1, 16, 1.0)
        told.append(any(payload.row_mask))
    assert told == [False, False, True, True]


def test_an_update_of_what_is_not_held_is_refused() -> None:
    before = random_knowledge()
    payload = encode_delta(moved(before, 3), before, 0.2, 16, 1.0)
    with pytest.raises(FedfuseError, match="got a delta"):
        decode(payload)
    with pytest.raises(FedfuseError, match=r"knowledge\.base"):
        decode(payload, random_knowledge(1))
    with pytest.raises(FedfuseError, match=r"knowledge\.row_mask: expected 1, got 2 bytes"):
        decode(replace(payload, row_mask=payload.row_mask * 2), before)
    with pytest.raises(FedfuseError, match=r"knowledge\.num_rows"):
        decode(replace(payload, row_mask=b"\xff"), before)

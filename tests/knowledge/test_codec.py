"""Knowledge on the wire: within the declared precision, and strict about what comes back."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfuse.errors import FedfuseError
from fedfuse.knowledge.codec import decode, encode
from fedfuse.knowledge.container import MAX_VOCABULARY, Header, pack, pack_numbers, unpack
from fedfuse.knowledge.quantizer import QUANTIZERS
from fedfuse.knowledge.record import Knowledge
from fedfuse.knowledge.top_p import trim
from tests.knowledge.conftest import VOCAB, random_knowledge

wires = st.sampled_from(list(QUANTIZERS))
each = pytest.mark.parametrize("bits", QUANTIZERS)


def check(knowledge: Knowledge) -> None:
    knowledge.validate(
        vocab_size=VOCAB, tokenizer="tokenizer", public="public", num_rows=knowledge.num_rows
    )


def by_id(knowledge: Knowledge) -> list[dict[int, float]]:
    """Each row's entries, without the unused slots."""
    return [
        {int(i): float(v) for i, v in zip(ids, logs, strict=True) if np.isfinite(v)}
        for ids, logs in zip(knowledge.indices, knowledge.logprobs, strict=True)
    ]


def bound(bits: int, knowledge: Knowledge, values: np.ndarray) -> np.ndarray:
    """What is declared: the rounding, and that of making the mass one again."""
    error = QUANTIZERS[bits].error
    return 1.1 * error * (2 + np.abs(values) + np.log(knowledge.k + 1)) + 1e-6


@settings(max_examples=200, deadline=None)
@given(
    wires, st.integers(0, 2**32), st.integers(0, 30), st.integers(1, 12), st.floats(0.05, 1),
    st.floats(0.05, 20),
)  # fmt: skip
def test_round_trip_within_the_declared_precision(
    bits: int, seed: int, rows: int, k: int, mass: float, concentration: float
) -> None:
    knowledge = trim(random_knowledge(seed, rows=rows, k=k, concentration=concentration), mass)
    check(knowledge)
    again = decode(encode(knowledge, bits))
    for name in ("offsets", "label_bytes", "tokenizer", "public"):
        np.testing.assert_array_equal(getattr(again, name), getattr(knowledge, name))
    for item in fields(Knowledge):
        found, sent = getattr(again, item.name), getattr(knowledge, item.name)
        assert type(found) is type(sent)
        if item.name not in ("tokenizer", "public"):
            sent = sent if sent.ndim == 1 else sent[:, : again.k]
            assert (found.dtype, found.shape) == (sent.dtype, sent.shape)
    assert again.k == np.isfinite(knowledge.logprobs).sum(1).max(initial=1)
    for name in ("tail_logprob", "label_logprob"):
        sent, found = getattr(knowledge, name), getattr(again, name)
        assert (np.abs(found - sent) <= bound(bits, knowledge, sent)).all()
    for sent_row, found_row in zip(by_id(knowledge), by_id(again), strict=True):
        assert sent_row.keys() == found_row.keys()
        for token, value in sent_row.items():
            assert abs(found_row[token] - value) <= bound(bits, knowledge, np.array(value))
    check(again)
    total = np.exp(again.logprobs.astype(np.float64)).sum(1) + np.exp(again.tail_logprob)
    np.testing.assert_allclose(total, 1, atol=1e-6)


@each
def test_the_label_keeps_the_value_of_its_entry(bits: int) -> None:
    """So a claim needs no tolerance of its own; beyond the entries it stays below what is left."""
    knowledge = random_knowledge(rows=50, samples=5)
    explicit = np.arange(50) % 3 == 0
    low = np.minimum(knowledge.logprobs[:, -1], knowledge.tail_logprob) - 0.3
    label = np.where(explicit, low, knowledge.logprobs[:, 1])
    again = decode(encode(replace(knowledge, label_logprob=label), bits))
    np.testing.assert_array_equal(again.label_logprob[~explicit], again.logprobs[~explicit, 1])
    below = np.minimum(again.logprobs[:, -1], again.tail_logprob)
    assert (again.label_logprob <= below)[explicit].all()
    wrong = np.abs(again.label_logprob - label)
    assert (wrong <= bound(bits, knowledge, label)).all()


@each
def test_a_label_that_is_all_that_is_left(bits: int) -> None:
    """Whoever rounds the tail below the label's own must not make an honest sender a liar."""
    knowledge = random_knowledge(rows=400, samples=5)
    noise = np.random.default_rng(1).uniform(-1e-6, 1e-6, 400).astype(np.float32)
    tail_logprob = np.minimum(knowledge.tail_logprob, knowledge.logprobs[:, -1])
    claim = tail_logprob + noise
    again = decode(encode(replace(knowledge, tail_logprob=tail_logprob, label_logprob=claim), bits))
    assert (again.label_logprob <= again.tail_logprob).all()


@each
def test_few_bytes(bits: int) -> None:
    """Of rows such as a language model has; ids by Zipf's law in a vocabulary of 32,000."""
    rng = np.random.default_rng(0)
    rows, k = 3000, 16
    share = np.arange(1, k + 1) ** -rng.uniform(1.2, 3, (rows, 1)) * rng.uniform(0.7, 1, (rows, k))
    share = -np.sort(-0.97 * share / share.sum(1, keepdims=True))
    frequent = 1 / np.arange(10, 32_000)
    ids = [rng.choice(len(frequent), k, replace=False, p=frequent / frequent.sum()) for _ in share]
    knowledge = Knowledge(
        offsets=np.arange(0, rows + 1, 10),
        indices=np.stack(ids),
        logprobs=np.log(share).astype(np.float32),
        tail_logprob=np.full(rows, np.log(0.03), dtype=np.float32),
        label_logprob=np.log(share[:, 0]).astype(np.float32),
        label_bytes=np.full(rows // 10, 30),
        tokenizer="t" * 64,
        public="p" * 64,
    )
    size = len(encode(trim(knowledge, 0.95), bits)) / rows
    assert size < {16: 48, 8: 24}[bits]


def test_no_probability_stays_none() -> None:
    """And in 8 bits what is below -198 is told as that."""
    knowledge = random_knowledge(k=3)
    logprobs, tail_logprob = knowledge.logprobs.copy(), knowledge.tail_logprob.copy()
    logprobs[0], tail_logprob[0], tail_logprob[1] = [0.0, -1e6, -np.inf], -np.inf, -1e6
    label = np.where(np.arange(7) < 2, logprobs[:, 0], knowledge.label_logprob)
    logprobs[1] += np.log1p(np.exp(knowledge.tail_logprob[1]) / np.exp(logprobs[1]).sum())
    label[1] = logprobs[1, 0]
    odd = replace(knowledge, logprobs=logprobs, tail_logprob=tail_logprob, label_logprob=label)
    for bits, low in ((16, -1e6), (8, QUANTIZERS[8].smallest)):
        again = decode(encode(odd, bits))
        assert again.tail_logprob[0] == again.logprobs[0, 2] == -np.inf
        assert again.logprobs[0, 1] == pytest.approx(low, rel=1e-3)
        assert again.tail_logprob[1] == pytest.approx(low, rel=1e-3)


@pytest.mark.parametrize("rows", [0, 1])
@each
def test_hardly_any_rows(bits: int, rows: int) -> None:
    check(decode(encode(random_knowledge(rows=rows), bits)))


@pytest.mark.parametrize(
    ("match", "change"),
    [
        (
            r"indices: expected .*got \d+ twice in row 3",
            lambda k: _set(k, "indices", (3, 0), k.indices[3, 1]),
        ),
        ("indices: expected .*got ", lambda k: _set(k, "indices", (3, 0), -1)),
        (
            r"indices: expected .*got \(\d+, 1048576\)",
            lambda k: _set(k, "indices", (3, 0), MAX_VOCABULARY),
        ),
        ("logprobs: expected .*got NaN", lambda k: _set(k, "logprobs", (2, 1), np.nan)),
        ("tail_logprob: expected .*got NaN or positive", lambda k: _set(k, "tail_logprob", 2, 0.5)),
        ("label_logprob: expected .*got -inf", lambda k: _set(k, "label_logprob", 2, -np.inf)),
        (
            "label_logprob: expected .*got too likely at row 2",
            lambda k: _set(k, "label_logprob", 2, -1e-3),
        ),
        ("label_bytes: expected .*got ", lambda k: _set(k, "label_bytes", 1, 2**32)),
        ("label_bytes: expected .*got ", lambda k: _set(k, "label_bytes", 1, -1)),
        ("offsets: expected .*got ", lambda k: _set(k, "offsets", 1, 9)),
        ("indices: expected .*got ", lambda k: replace(k, indices=k.indices[:, :2])),
        (
            "logprobs: expected .*got a row without an entry",
            lambda k: _set(k, "logprobs", 2, -np.inf),
        ),
    ],
)
@each
def test_what_cannot_be_told_is_refused(bits: int, match: str, change: Any) -> None:
    with pytest.raises(FedfuseError, match=rf"^knowledge\.{match}"):
        encode(change(random_knowledge()), bits)


def _set(knowledge: Knowledge, name: str, place: Any, value: Any) -> Knowledge:
    values = getattr(knowledge, name).copy()
    values[place] = value
    return replace(knowledge, **{name: values})


def test_an_unknown_number_of_bits() -> None:
    with pytest.raises(FedfuseError, match=r"knowledge\.logprob_bits: expected 16 or 8.*, got 7"):
        encode(random_knowledge(), 7)


def test_what_the_receiver_expects() -> None:
    message = encode(random_knowledge())
    decode(message, num_rows=7, k=4)
    with pytest.raises(FedfuseError, match=r"knowledge\.num_rows: expected 8.*, got 7"):
        decode(message, num_rows=8)
    with pytest.raises(FedfuseError, match=r"knowledge\.k: expected at most 3.*, got 4"):
        decode(message, k=3)


def forged(message: bytes, head: dict[str, Any], **values: Any) -> bytes:
    """The message with other header entries and fields, and a good checksum."""
    header, found = unpack(message)
    for name, value in values.items():
        found[name] = value if isinstance(value, bytes) else pack_numbers(np.asarray(value))
    return pack(replace(header, **head), found)


FORGERIES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("offsets: expected .*, got 8", {}, {"offsets": [2, 2, 4]}),
    ("offsets: expected .*, got 2 bytes", {}, {"offsets": [3, 4]}),
    ("label_bytes: expected .*, got .*2 bytes", {}, {"label_bytes": [3, 4]}),
    ("tokens: expected .*, got ", {}, {"tokens": [2**20, *[0] * 20]}),
    ("counts: expected .*, got ", {}, {"counts": [5, *[0] * 20]}),
    ("smallest: expected .*, got 28 bytes", {}, {"smallest": [2**31] * 7}),
    ("smallest: expected .*, got no probability", {}, {"smallest": [65535] * 7}),
    ("logprobs: expected .*, got -", {}, {"logprobs": [65535] * 28}),
    ("tail_logprob: expected .*, got 28 bytes", {}, {"tail_logprob": [2**31] * 7}),
    ("mass: expected one within .*, got off by", {}, {"tail_logprob": [0] * 7}),
    ("label_place: expected .*, got that of no entry", {}, {"label_place": [5] * 7}),
    (
        "label_logprob: expected .*, got ",
        {},
        {"label_place": [4] * 7, "label_logprob": [65535] * 7},
    ),
    ("label_logprob: expected zstandard", {}, {"label_logprob": b"1234"}),
    ("gaps: expected .*, got ", {"k": 40}, {"gaps": bytes(20)}),
    ("gaps: expected .*, got ", {}, {"gaps": bytes([255] * 4)}),
    ("remainders: expected .*, got ", {}, {"remainders": bytes(50)}),
]


@pytest.mark.parametrize(("match", "head", "values"), FORGERIES)
def test_a_forgery_with_a_good_checksum(
    match: str, head: dict[str, Any], values: dict[str, Any]
) -> None:
    message = encode(random_knowledge())
    header, _ = unpack(message)
    for name in ("tokens", "counts"):  # as many as there are
        if name in values:
            values = values | {name: values[name][:1] + [0] * (header.num_tokens - 1)}
    with pytest.raises(FedfuseError, match=rf"^knowledge\.{match}"):
        decode(forged(message, head, **values))


def test_more_entries_in_a_row_than_k() -> None:
    """Tokens that all name the same row."""
    knowledge = random_knowledge(rows=2, samples=1, k=2)
    header = Header(16, 2, 2, 1, 4, 4, "t", "p")
    fields = unpack(encode(knowledge))[1] | {
        "tokens": pack_numbers(np.zeros(4, dtype=np.int64)),
        "counts": pack_numbers(np.zeros(4, dtype=np.int64)),
        "gaps": bytes([0b11110000]),
        "remainders": b"",
        "logprobs": pack_numbers(np.zeros(4, dtype=np.int64)),
    }
    with pytest.raises(FedfuseError, match=r"gaps: expected \(1, 2\).*, got \(0, 4\) entries"):
        decode(pack(header, fields))

"""Knowledge on the wire: exact to half precision, narrow, and strict about what comes back."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfuse.errors import FedfuseError
from fedfuse.knowledge import codec
from fedfuse.knowledge.codec import decode, encode
from fedfuse.knowledge.record import Knowledge
from tests.knowledge.conftest import VOCAB, random_knowledge


def there_and_back(knowledge: Knowledge) -> Knowledge:
    return decode(encode(knowledge), tokenizer="tokenizer", public="public")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 9), st.integers(1, 6))
def test_round_trip_is_exact_to_half_precision(seed: int, rows: int, k: int) -> None:
    knowledge = random_knowledge(seed, rows=rows, k=k)
    again = there_and_back(knowledge)
    for name in ("offsets", "indices", "label_bytes", "label_logprob"):
        np.testing.assert_array_equal(getattr(again, name), getattr(knowledge, name))
    for name in ("logprobs", "residual"):
        sent = getattr(knowledge, name).astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(getattr(again, name), sent)
    for item in fields(Knowledge):
        assert type(getattr(again, item.name)) is type(getattr(knowledge, item.name))
        if item.name not in ("tokenizer", "public"):
            assert getattr(again, item.name).dtype == getattr(knowledge, item.name).dtype
    again.validate(vocab_size=VOCAB, tokenizer="tokenizer", public="public", rows=rows)
    # Once in half precision, it stays what it is.
    np.testing.assert_array_equal(there_and_back(again).logprobs, again.logprobs)


@pytest.mark.parametrize(
    ("largest", "width"),
    [(0, 1), (255, 1), (256, 2), (65535, 2), (65536, 4), (2**32 - 1, 4), (2**32, 8)],
)
def test_integers_travel_in_the_narrowest_type(largest: int, width: int) -> None:
    indices = np.full((7, 4), largest)
    wire = encode(replace(random_knowledge(), indices=indices))
    assert wire["indices"].dtype == np.dtype(f"u{width}")
    back = decode(wire, tokenizer="tokenizer", public="public")
    np.testing.assert_array_equal(back.indices, indices)


def test_types_on_the_wire() -> None:
    wire = encode(replace(random_knowledge(), label_bytes=np.array([1, 300, 7])))
    assert {name: values.dtype.name for name, values in wire.items()} == {
        "offsets": "uint8",
        "indices": "uint8",
        "logprobs": "float16",
        "residual": "float16",
        "label_logprob": "float32",
        "label_bytes": "uint16",
    }


def test_what_half_precision_cannot_hold() -> None:
    """No mass stays no mass, and what is out of range becomes none, without a warning."""
    knowledge = random_knowledge()
    logprobs, residual = knowledge.logprobs.copy(), knowledge.residual.copy()
    logprobs[0, 3], residual[1], residual[2] = -1e6, -np.inf, -65504
    again = there_and_back(replace(knowledge, logprobs=logprobs, residual=residual))
    assert again.logprobs[0, 3] == -np.inf
    assert again.residual[1] == -np.inf
    assert again.residual[2] == -65504


@pytest.mark.parametrize("name", ["offsets", "logprobs", "label_bytes"])
def test_a_missing_field(name: str) -> None:
    wire = encode(random_knowledge())
    del wire[name]
    with pytest.raises(FedfuseError, match=rf"has fields .*; allowed: .*'{name}'"):
        decode(wire, tokenizer="", public="")


def test_a_surplus_field() -> None:
    wire = encode(random_knowledge()) | {"code": np.zeros(3)}
    with pytest.raises(FedfuseError, match=r"has fields \['code'"):
        decode(wire, tokenizer="", public="")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("offsets", np.array([0.0, 7.0])),
        ("indices", np.zeros((7, 4), dtype=np.int32)),
        ("indices", np.zeros((7, 4), dtype=bool)),
        ("indices", np.zeros(28, dtype=np.uint8)),
        ("logprobs", np.zeros((7, 4), dtype=np.uint8)),
        ("logprobs", np.zeros((7, 4), dtype=np.complex64)),
        ("logprobs", np.zeros((7, 4, 1), dtype=np.float16)),
        ("residual", np.array(["a"] * 7)),
        ("residual", np.array([object()] * 7)),
        ("label_logprob", np.float32(0.0) * np.zeros((), dtype=np.float32)),
    ],
)
def test_a_wrong_type_or_shape(name: str, values: np.ndarray) -> None:
    wire = encode(random_knowledge()) | {name: np.asarray(values)}
    with pytest.raises(FedfuseError, match=rf"knowledge\.{name} is .*; allowed: "):
        decode(wire, tokenizer="", public="")


def test_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = encode(random_knowledge())
    monkeypatch.setattr(codec, "MAX_ENTRIES", 28)
    decode(wire, tokenizer="", public="")
    monkeypatch.setattr(codec, "MAX_ENTRIES", 27)
    with pytest.raises(FedfuseError, match="at most 27 entries"):
        decode(wire, tokenizer="", public="")


def test_no_offsets_at_all() -> None:
    wire = encode(random_knowledge()) | {"offsets": np.zeros(0, dtype=np.uint8)}
    with pytest.raises(FedfuseError, match="offsets is empty"):
        decode(wire, tokenizer="", public="")


def test_integers_that_wrap_around_are_refused() -> None:
    """2**64 - 1 becomes -1 in memory; it must not become a place in an array."""
    for name in ("offsets", "indices"):
        wire = encode(random_knowledge())
        wire[name] = wire[name].astype(np.uint64)
        wire[name].flat[1] = 2**64 - 1
        with pytest.raises(FedfuseError, match=rf"knowledge\.{name}"):
            decode(wire, tokenizer="tokenizer", public="public").validate(
                vocab_size=VOCAB, tokenizer="tokenizer", public="public", rows=7
            )

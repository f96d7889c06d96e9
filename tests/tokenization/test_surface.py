"""Surfaces: one convention for all kinds of tokenizer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fedfuse.errors import FedfuseError
from fedfuse.tokenization.surface import surfaces, token_bytes
from fedfuse.tokenization.tokenizer import TextTokenizer
from tests.tokenization.conftest import KINDS, by_hand


def convert(token: str, **spec: Any) -> bytes:
    """Bytes of one token under a specification."""
    return token_bytes(spec, {token: 0}, 1)[0]


BPE = {"type": "BPE"}
BYTE_LEVEL = {"type": "ByteLevel"}
METASPACE = {"type": "Metaspace", "replacement": "▁"}


@pytest.mark.parametrize(
    ("token", "spec", "expected"),
    [
        ("Ġhello", {"model": BPE, "pre_tokenizer": BYTE_LEVEL}, b" hello"),
        ("Ċ", {"model": BPE, "decoder": BYTE_LEVEL}, b"\n"),
        ("æĹ", {"model": BPE, "normalizer": BYTE_LEVEL}, b"\xe6\x97"),
        ("漢", {"model": BPE, "decoder": BYTE_LEVEL}, "漢".encode()),
        ("▁hello", {"model": {"type": "Unigram"}, "pre_tokenizer": METASPACE}, b" hello"),
        ("_x", {"model": BPE, "decoder": {**METASPACE, "replacement": "_"}}, b" x"),
        ("<0x0A>", {"model": {**BPE, "byte_fallback": True}}, b"\n"),
        ("<0xE6>", {"model": BPE, "decoder": {"type": "ByteFallback"}}, b"\xe6"),
        ("<0x0A>", {"model": BPE}, b"<0x0A>"),
        ("x</w>", {"model": {**BPE, "end_of_word_suffix": "</w>"}}, b"x"),
        ("é", {"model": BPE}, "é".encode()),
    ],
)
def test_conversions(token: str, spec: dict[str, Any], expected: bytes) -> None:
    assert convert(token, **spec) == expected


def test_markers_inside_sequences() -> None:
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    normalizer = {
        "type": "Sequence",
        "normalizers": [{"type": "NFC"}, {"type": "Sequence", "normalizers": [replace]}],
    }
    assert convert("▁a▁", model=BPE, normalizer=normalizer) == b" a "
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    decoder = {"type": "Sequence", "decoders": [back, {"type": "Fuse"}]}
    assert convert("▁a", model=BPE, decoder=decoder) == b" a"
    unrelated = {"type": "Replace", "pattern": {"Regex": " +"}, "content": "x"}
    assert convert("▁a", model=BPE, normalizer=unrelated) == "▁a".encode()


def test_wordpiece_words_begin_with_a_space() -> None:
    tokenizer = by_hand("wordpiece", ["[UNK]", "the", "##s", "##", ",", "##é"])
    assert tokenizer.token_bytes == [b" [UNK]", b" the", b"s", b" ##", b" ,", "é".encode()]


def test_wordpiece_punctuation_joins_where_the_decoder_says_so() -> None:
    model = {"type": "WordPiece", "continuing_subword_prefix": "##"}
    for cleanup, comma in ((True, b","), (False, b" ,")):
        decoder = {"type": "WordPiece", "prefix": "##", "cleanup": cleanup}
        assert convert(",", model=model, decoder=decoder) == comma
        assert convert("(", model=model, decoder=decoder) == b" ("
        assert convert("##,", model=model, decoder=decoder) == b","


def test_added_tokens_are_literal() -> None:
    spec = json.loads(by_hand("byte-level", ["a", "Ġ"]).to_json())["tokenizer"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    spec["added_tokens"] = [
        {"id": 2, "content": "  ", "special": False, **flags},
        {"id": 3, "content": "<|é|>", "special": True, **flags},
    ]
    tokenizer = TextTokenizer.from_json(json.dumps(spec))
    assert tokenizer.token_bytes == [b"a", b" ", b"  ", "<|é|>".encode()]
    found = surfaces(tokenizer)
    assert found.special == {3}
    assert found.roles == {}


def test_unknown_model_type_is_named() -> None:
    spec = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
    }
    tokenizer = TextTokenizer.from_json(json.dumps(spec))
    with pytest.raises(FedfuseError, match="'WordLevel'; allowed: BPE, Unigram, WordPiece"):
        tokenizer.encode(["a"])


@pytest.mark.parametrize("kind", KINDS)
def test_roles_and_special_ids(tokenizers: dict[str, TextTokenizer], kind: str) -> None:
    found = surfaces(tokenizers[kind])
    assert found.roles == {0: ("bos",), 1: ("eos",), 2: ("pad",), 3: ("unk",)}
    assert found.special == {0, 1, 2, 3}
    assert len(found.bytes) == len(found.used) == tokenizers[kind].vocab_size
    assert found.fallback == (set(range(4, 260)) if kind == "sentencepiece" else set())


def test_one_id_with_several_roles() -> None:
    tokenizer = by_hand("wordpiece", ["[U]", "end"], bos="end", eos="end", pad="end")
    assert surfaces(tokenizer).roles == {0: ("unk",), 1: ("bos", "eos", "pad")}


def test_kinds_agree_on_a_word(tokenizers: dict[str, TextTokenizer]) -> None:
    for tokenizer in tokenizers.values():
        (encoded,) = tokenizer.encode(["on the"])
        assert b"".join(tokenizer.token_bytes[i] for i in encoded.ids).endswith(b"n the")

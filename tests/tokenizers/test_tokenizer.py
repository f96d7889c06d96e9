"""Loading, identity and special tokens of tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import SLOW_TO_FAST_CONVERTERS, BertConverter
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from fedfuse.errors import FedfuseError
from fedfuse.tokenizers import tokenizer as tokenizer_module
from fedfuse.tokenizers.tokenizer import ROLES, TextTokenizer, _rust_errors
from tests.tokenizer_kinds import KINDS, SPECIALS, TEXTS, by_hand


@pytest.mark.parametrize("kind", KINDS)
def test_json_round_trip_keeps_everything(tokenizers: dict[str, TextTokenizer], kind: str) -> None:
    first = tokenizers[kind]
    second = TextTokenizer.from_json(first.to_json())
    assert second.to_json() == first.to_json()
    assert second.fingerprint == first.fingerprint
    assert second.special_ids == first.special_ids
    assert second.bos_id == first.bos_id
    assert second.vocab_size == first.vocab_size
    for one, other in zip(first.encode(TEXTS), second.encode(TEXTS), strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.ends, other.ends)


@pytest.mark.parametrize("kind", KINDS)
def test_from_pretrained_equals_from_json(
    rust: dict[str, Tokenizer], tokenizers: dict[str, TextTokenizer], kind: str
) -> None:
    named = {f"{role}_token": token for role, token in SPECIALS.items()}
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(rust[kind].to_str()), **named
    )
    taken = TextTokenizer.from_pretrained(wrapped)
    assert taken.special_ids == tokenizers[kind].special_ids
    assert taken.vocab_size == len(wrapped)
    for text, encoded in zip(TEXTS, taken.encode(TEXTS), strict=True):
        if "</s>" not in text:  # transformers reads special tokens out of texts
            assert encoded.ids.tolist() == wrapped(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_decode_is_what_the_library_decodes(
    rust: dict[str, Tokenizer], tokenizers: dict[str, TextTokenizer], kind: str
) -> None:
    for encoded in tokenizers[kind].encode(TEXTS):
        ids = encoded.ids.tolist()
        assert tokenizers[kind].decode(ids) == rust[kind].decode(ids)
    special = tokenizers[kind].special_ids["unk"]
    assert tokenizers[kind].decode([special]) == ""


@pytest.mark.parametrize(
    ("single", "frame"),
    [
        ("<s> $A </s>", ((0,), (1,))),
        ("<s> $A", ((0,), ())),
        ("$A </s> </s>", ((), (1, 1))),
        (None, ((), ())),
    ],
)
def test_the_frame_is_what_the_post_processor_adds(
    single: str | None, frame: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    backend = Tokenizer(WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2, "a": 3}, "<unk>"))
    if single is not None:
        specials = [("<s>", 0), ("</s>", 1)]
        backend.post_processor = TemplateProcessing(single=single, special_tokens=specials)
    assert TextTokenizer.from_json(backend.to_str()).special_prefix_suffix == frame


def test_from_pretrained_names_a_tokenizer_without_fast_form() -> None:
    slow = SimpleNamespace(name_or_path="some/slow-one")
    with pytest.raises(FedfuseError, match=r"some/slow-one.*SimpleNamespace.*no fast form"):
        TextTokenizer.from_pretrained(slow)  # type: ignore[arg-type]


def test_what_the_error_says_about_conversion_works(tmp_path: Path) -> None:
    """A tokenizer in Python, by BERT's converter: the same tokens."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", ",", "日"]
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(words) + "\n", encoding="utf-8")
    slow: Any = BertTokenizerLegacy(str(vocabulary))
    with pytest.raises(FedfuseError, match=r"BertTokenizerLegacy.*BertConverter\(tokenizer\)"):
        TextTokenizer.from_pretrained(slow)
    assert "BertTokenizerLegacy" not in SLOW_TO_FAST_CONVERTERS  # so it has to be named
    file = tmp_path / "tokenizer.json"
    BertConverter(slow).converted().save(str(file))
    named = {f"{role}_token": getattr(slow, f"{role}_token") for role in ("cls", "pad", "unk")}
    fast = TextTokenizer.from_pretrained(PreTrainedTokenizerFast(tokenizer_file=str(file), **named))
    text = "The cats, 日cat dog"
    expected = slow.convert_tokens_to_ids(slow.tokenize(text))
    assert fast.encode([text])[0].ids.tolist() == expected == [5, 6, 7, 8, 9, 6, 1]
    assert fast.special_ids == {"pad": 0, "unk": 1, "cls": 2}


def test_caller_settings_do_not_change_tokens_or_fingerprint(rust: dict[str, Tokenizer]) -> None:
    changed = Tokenizer.from_str(rust["byte-level"].to_str())
    plain = TextTokenizer.from_json(changed.to_str(), SPECIALS)
    changed.enable_truncation(3)
    changed.enable_padding(length=50)
    spec = json.loads(changed.to_str())
    spec["model"]["dropout"] = 0.9
    same = TextTokenizer.from_json(json.dumps(spec), SPECIALS)
    assert same.fingerprint == plain.fingerprint
    assert same.encode([TEXTS[1]])[0].ids.tolist() == plain.encode([TEXTS[1]])[0].ids.tolist()


def test_fingerprint_tells_special_tokens_apart(tokenizers: dict[str, TextTokenizer]) -> None:
    other = TextTokenizer.from_json(tokenizers["unigram"].to_json(), {"eos": "<s>"})
    assert other.fingerprint != tokenizers["unigram"].fingerprint
    assert other.special_ids == {"eos": 0, "unk": 3}  # unk is the model's own


@pytest.mark.parametrize(
    ("specials", "expected"),
    [
        ({"bos": "a", "cls": "b", "eos": "c", "pad": "d"}, 1),
        ({"cls": "b", "eos": "c", "pad": "d"}, 2),
        ({"eos": "c", "pad": "d"}, 3),
        ({"pad": "d", "sep": "a"}, 4),
    ],
)
def test_begin_token_falls_back(specials: dict[str, str], expected: int) -> None:
    assert by_hand("wordpiece", ["[U]", "a", "b", "c", "d"], **specials).bos_id == expected


def test_begin_token_missing() -> None:
    tokenizer = by_hand("wordpiece", ["[U]", "a"], sep="a")
    with pytest.raises(FedfuseError, match="bos, cls, eos, pad"):
        _ = tokenizer.bos_id


def test_spelled_special_tokens_are_text(tokenizers: dict[str, TextTokenizer]) -> None:
    text = "a </s> <pad></s>b<s> <unk>"
    for tokenizer in tokenizers.values():
        [ids] = tokenizer.encode_ids([text])
        assert not set(ids) & ({*tokenizer.special_ids.values()} - {tokenizer.special_ids["unk"]})


def test_spelled_special_tokens_of_public_tokenizers_are_text(real: TextTokenizer) -> None:
    token_of = {number: token for token, number in real.vocabulary.items()}
    special = {token_of[number] for number in (*real.special_ids.values(), *real.marked_special)}
    ids = real.encode_ids([f"a {token}{token} b" for token in sorted(special)])
    unknown = real.special_ids.get("unk")
    assert special
    for found in ids:
        assert not set(found) & (real.marked_special - {unknown})


@pytest.mark.parametrize("kind", ["Unigram", "WordLevel", "BPE"])
def test_special_tokens_among_a_models_own_pieces_are_text(kind: str) -> None:
    tokens = ["<unk>", "</s>", "a", "<", "/", "s", ">", "!"]
    vocab: object = {token: number for number, token in enumerate(tokens)}
    model: dict[str, object] = {"type": kind, "vocab": vocab, "unk_token": "<unk>"}
    if kind == "Unigram":
        vocab = [[token, 0.0 if len(token) > 1 else -9.0] for token in tokens]
        model = {"type": kind, "vocab": vocab, "unk_id": 0}
    if kind == "BPE":
        model |= {"merges": [], "ignore_merges": True}
    added = [
        {"id": number, "content": tokens[number], "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for number in (0, 1, 7)
    ]
    pre_tokenizer = {"type": "WhitespaceSplit"}
    spec = {"version": "1.0", "model": model, "added_tokens": added, "pre_tokenizer": pre_tokenizer}

    tokenizer = TextTokenizer.from_json(json.dumps(spec), {"eos": "</s>", "pad": "!"})

    assert tokenizer.vocabulary == {token: number for number, token in enumerate(tokens)}
    assert tokenizer.special_ids == {"eos": 1, "pad": 7, "unk": 0}
    [spelled, mark] = tokenizer.encode_ids(["a </s>", "!"])
    assert spelled == ([2, 0] if kind == "WordLevel" else [2, 3, 4, 5, 6])
    assert mark == [7]  # a character stays one
    [hidden] = tokenizer.encode_ids(["a \U0010ffff</s>"])
    assert 1 not in hidden
    assert tokenizer.decode([2, 1]).strip() == "a"


def test_size_counts_holes_in_the_ids() -> None:
    spec = json.loads(by_hand("wordpiece", ["[U]", "a"]).to_json())["tokenizer"]
    spec["model"]["vocab"]["b"] = 7
    tokenizer = TextTokenizer.from_json(json.dumps(spec))
    assert tokenizer.vocab_size == 8
    assert tokenizer.token_bytes == [b" [U]", b" a", b"", b"", b"", b"", b"", b" b"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1, 2]",
        '"text"',
        "null",
        "{}",
        '{"model": null}',
        '{"model": {"type": "Pickle"}}',
        '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
        '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}',
        '{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}',
        '{"version": "1.0", "model": {"type": "BPE", "vocab": {"\\ud800": 0}, "merges": []}}',
        '{"format": "fedfuse-tokenizer-0"}',
        '{"format": "fedfuse-tokenizer-1", "specials": {}, "tokenizer": 3}',
        '{"format": "fedfuse-tokenizer-1", "specials": [], "tokenizer": {}}',
        "[" * 100_000,
    ],
)
def test_malformed_json_is_refused(text: str) -> None:
    with pytest.raises(FedfuseError, match="tokenizer"):
        TextTokenizer.from_json(text)


def test_huge_ids_are_refused() -> None:
    spec = json.loads(by_hand("wordpiece", ["[U]", "a"]).to_json())["tokenizer"]
    spec["model"]["vocab"]["b"] = 1 << 30
    with pytest.raises(FedfuseError, match=r"largest id: expected 0\.\.4194303, got 1073741824"):
        TextTokenizer.from_json(json.dumps(spec))


@pytest.mark.parametrize(
    ("specials", "message"),
    [
        ({"bos": "nowhere"}, "special token bos: expected .*'nowhere'"),
        ({"bos": 3}, "special token bos: expected .* 3"),
        ({"boss": "a"}, f"role: expected {', '.join(ROLES)}, got 'boss'"),
    ],
)
def test_wrong_special_tokens_are_refused(specials: dict[str, object], message: str) -> None:
    parsed = json.loads(by_hand("wordpiece", ["[U]", "a"]).to_json())
    with pytest.raises(FedfuseError, match=message):
        TextTokenizer.from_json(json.dumps({**parsed, "specials": specials}))


def test_text_that_cannot_be_tokenized_is_refused(tokenizers: dict[str, TextTokenizer]) -> None:
    with pytest.raises(FedfuseError, match="text cannot be tokenized"):
        tokenizers["byte-level"].encode(["\ud800"])
    spec = json.loads(by_hand("wordpiece", ["[U]", "a"]).to_json())["tokenizer"]
    spec["model"]["unk_token"] = "nowhere"
    with pytest.raises(FedfuseError, match="text cannot be tokenized"):
        TextTokenizer.from_json(json.dumps(spec)).encode(["b"])


def test_panics_are_errors_and_interrupts_are_not() -> None:
    """The Rust library's panics are no ``Exception``, so they would end the process."""
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(FedfuseError, match="loading: index out of bounds"), _rust_errors("loading"):
        raise panic("index out of bounds")
    with pytest.raises(KeyboardInterrupt), _rust_errors("loading"):
        raise KeyboardInterrupt


def test_tokens_that_cannot_be_read_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Surfaces ask components of the Rust library, which may panic on another party's settings."""
    panic = type("PanicException", (BaseException,), {})

    def fail(*args: object) -> None:
        raise panic("no such range")

    monkeypatch.setattr(tokenizer_module, "token_bytes", fail)
    with pytest.raises(FedfuseError, match="tokens cannot be read as bytes: no such range"):
        _ = by_hand("wordpiece", ["[U]", "a"]).token_bytes

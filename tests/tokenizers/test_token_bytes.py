"""Surfaces: one convention for all kinds of tokenizer."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from fedfuse.errors import FedfuseError
from fedfuse.tokenizers.token_bytes import token_bytes
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.tokenizer_kinds import KINDS, SPECIALS, by_hand


def convert(token: str, **spec: Any) -> bytes:
    """Bytes of one token under a specification."""
    return token_bytes(spec, {token: 0}, 1)[0]


def several(*children: dict[str, Any], key: str = "pretokenizers") -> dict[str, Any]:
    """A sequence of components."""
    return {"type": "Sequence", key: list(children)}


BPE = {"type": "BPE"}
SUFFIXED = {**BPE, "end_of_word_suffix": "</w>"}
WORD_PIECE = {"type": "WordPiece", "continuing_subword_prefix": "##"}
WORD_LEVEL = {"type": "WordLevel"}
UNIGRAM = {"type": "Unigram", "vocab": []}
BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": False,
}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
WORDS = {"type": "Whitespace"}
BERT = {"type": "BertPreTokenizer"}
DIGITS = {"type": "Digits", "individual_digits": True}
NUMBERS = {"type": "Digits", "individual_digits": False}
CHARACTERS = {
    "type": "Split",
    "pattern": {"Regex": "."},
    "behavior": "Isolated",
    "invert": False,
}
# CLIP's: the regular expression says what is kept.
KEPT = {"type": "Split", "pattern": {"Regex": "[a-z]+"}, "behavior": "Removed", "invert": True}
BERT_TEXT = {
    "type": "BertNormalizer",
    "clean_text": True,
    "handle_chinese_chars": True,
    "strip_accents": None,
    "lowercase": True,
}


@pytest.mark.parametrize(
    ("token", "spec", "expected"),
    [
        ("Ġhello", {"model": BPE, "pre_tokenizer": BYTE_LEVEL}, b" hello"),
        ("Ċ", {"model": BPE, "decoder": BYTE_LEVEL}, b"\n"),
        ("æĹ", {"model": BPE, "normalizer": BYTE_LEVEL}, b"\xe6\x97"),
        ("漢", {"model": BPE, "decoder": BYTE_LEVEL}, "漢".encode()),
        ("▁hello", {"model": UNIGRAM, "pre_tokenizer": METASPACE}, b" hello"),
        ("_x", {"model": BPE, "decoder": {**METASPACE, "replacement": "_"}}, b" x"),
        ("<0x0A>", {"model": {**BPE, "byte_fallback": True}}, b"\n"),
        ("<0xE6>", {"model": BPE, "decoder": {"type": "ByteFallback"}}, b"\xe6"),
        ("<0x0A>", {"model": BPE}, b"<0x0A>"),
        ("x</w>", {"model": SUFFIXED}, b"x"),
        ("é", {"model": BPE}, "é".encode()),
        # The space that the pre-tokenizer drops comes back with what shows that it begins a word.
        ("x</w>", {"model": SUFFIXED, "pre_tokenizer": WORDS}, b" x"),
        ("x", {"model": SUFFIXED, "pre_tokenizer": WORDS}, b"x"),
        ("</w>", {"model": SUFFIXED, "pre_tokenizer": WORDS}, b"</w>"),
        ("Ã©</w>", {"model": SUFFIXED, "pre_tokenizer": several(KEPT, BYTE_LEVEL)}, b" \xc3\xa9"),
        ("Ã©", {"model": SUFFIXED, "pre_tokenizer": several(KEPT, BYTE_LEVEL)}, b"\xc3\xa9"),
        ("@@x", {"model": {**WORD_PIECE, "continuing_subword_prefix": "@@"}}, b"x"),
        (
            "@@x</w>",
            {
                "model": {**SUFFIXED, "continuing_subword_prefix": "@@"},
                "pre_tokenizer": WORDS,
            },
            b"x",
        ),
        (
            "x",
            {
                "model": {**SUFFIXED, "continuing_subword_prefix": "@@"},
                "pre_tokenizer": WORDS,
            },
            b" x",
        ),
        ("x", {"model": WORD_LEVEL, "pre_tokenizer": WORDS}, b" x"),
        ("x", {"model": WORD_LEVEL, "pre_tokenizer": {"type": "WhitespaceSplit"}}, b" x"),
        ("x", {"model": BPE, "pre_tokenizer": WORDS}, b"x"),
        # Nothing is dropped: a token stands for itself.
        ("x", {"model": WORD_LEVEL}, b"x"),
        ("x", {"model": WORD_LEVEL, "pre_tokenizer": CHARACTERS}, b"x"),
        (" ", {"model": WORD_LEVEL, "pre_tokenizer": CHARACTERS}, b" "),
        ("x", {"model": WORD_PIECE}, b"x"),
        ("x y", {"model": {**WORD_PIECE, "continuing_subword_prefix": ""}}, b"x y"),
        ("x", {"model": WORD_LEVEL, "pre_tokenizer": METASPACE}, b"x"),
        ("▁x", {"model": WORD_LEVEL, "pre_tokenizer": METASPACE}, b" x"),
        ("▁x", {"model": WORD_PIECE, "pre_tokenizer": METASPACE}, b" x"),
        ("##x", {"model": WORD_PIECE, "pre_tokenizer": METASPACE}, b"x"),
        # Dropped, but cut off without a space as well.
        ("x", {"model": WORD_LEVEL, "pre_tokenizer": several(WORDS, CHARACTERS)}, b"x"),
        ("1", {"model": WORD_PIECE, "pre_tokenizer": several(WORDS, DIGITS)}, b"1"),
        ("1", {"model": WORD_PIECE, "pre_tokenizer": several(WORDS, NUMBERS)}, b" 1"),
        ("1", {"model": WORD_PIECE, "pre_tokenizer": BERT}, b" 1"),
        (
            "日",
            {"model": WORD_PIECE, "pre_tokenizer": BERT, "normalizer": BERT_TEXT},
            "日".encode(),
        ),
        ("日", {"model": WORD_PIECE, "pre_tokenizer": BERT}, " 日".encode()),
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
    for cleanup, comma in ((True, b","), (False, b" ,")):
        decoder = {"type": "WordPiece", "prefix": "##", "cleanup": cleanup}
        spec = {"model": WORD_PIECE, "pre_tokenizer": BERT, "decoder": decoder}
        assert convert(",", **spec) == comma
        assert convert("(", **spec) == b" ("
        assert convert("##,", **spec) == b","


def test_added_tokens_are_literal() -> None:
    spec = json.loads(by_hand("byte-level", ["a", "Ġ"]).to_json())["tokenizer"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    spec["added_tokens"] = [
        {"id": 2, "content": "  ", "special": False, **flags},
        {"id": 3, "content": "<|é|>", "special": True, **flags},
    ]
    tokenizer = TextTokenizer.from_json(json.dumps(spec))
    assert tokenizer.token_bytes == [b"a", b" ", b"  ", "<|é|>".encode()]
    found = tokenizer.vocabulary_bytes
    assert found.special == {3}
    assert found.roles == {}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, b"Foo"),
        ({"lstrip": True}, b" Foo"),
        ({"rstrip": True}, b"Foo "),
        ({"single_word": True}, b"Foo"),
        ({"normalized": True}, b" foo"),
        ({"special": True, "lstrip": True}, b"Foo"),
    ],
)
def test_added_tokens_in_a_tokenizer_with_a_marker(
    settings: dict[str, bool], expected: bytes
) -> None:
    """A normalized one is found where its normalized form is, marker and all."""
    tokenizer = _with_marker(AddedToken("Foo", **{"normalized": False, **settings}))
    assert tokenizer.token_bytes[-1] == expected
    (encoded,) = tokenizer.encode(["a Foo a"])
    assert (tokenizer.vocab_size - 1 in encoded.ids) == (not settings.get("special", False))


def _with_marker(added: AddedToken) -> TextTokenizer:
    """Two letters and the marker, put in front, in a lower-casing tokenizer; and an added token."""
    rust = Tokenizer(models.BPE({"<unk>": 0, "▁": 1, "a": 2}, [], unk_token="<unk>"))
    rust.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁"), normalizers.Lowercase()]
    )
    add = rust.add_special_tokens if added.special else rust.add_tokens
    add([added])
    return TextTokenizer.from_json(rust.to_str())


def test_added_tokens_are_words_where_spaces_are_dropped() -> None:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    spec = {
        "model": WORD_PIECE,
        "pre_tokenizer": BERT,
        "added_tokens": [{"id": 0, "content": "new", "special": False, **flags}],
    }
    assert convert("new", **spec) == b" new"
    # Not of the model, so its prefix is text.
    spec["added_tokens"][0]["content"] = "##new"
    assert convert("##new", **spec) == b" ##new"


def test_added_token_that_the_model_has_too() -> None:
    """Gemma's runs of markers: the text has spaces, which only the model can make of it."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    spec = {
        "model": {**BPE, "vocab": {"Ġ": 0}},
        "pre_tokenizer": BYTE_LEVEL,
        "added_tokens": [{"id": 0, "content": "Ġ", "special": False, **flags}],
    }
    assert convert("Ġ", **spec) == b" "
    spec["model"] = BPE
    assert convert("Ġ", **spec) == "Ġ".encode()


@pytest.mark.parametrize("in_model", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
def test_added_letters_that_look_like_bytes(in_model: bool, normalized: bool) -> None:
    """DeepSeek-Coder's umlauts: no text has the byte that the letter is in the alphabet's terms."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [token for token in alphabet if in_model or token not in "öü"]
    rust = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.add_tokens([AddedToken(token, normalized=normalized) for token in "öü"])
    tokenizer = TextTokenizer.from_json(rust.to_str())
    (encoded,) = tokenizer.encode(["für é"])
    found = [tokenizer.token_bytes[i] for i in encoded.ids]
    assert found == [b"f", "ü".encode(), b"r", b" ", b"\xc3", b"\xa9"]
    assert encoded.ends.tolist() == [1, 3, 4, 5, 6, 7]


def _lower_case_without_accents(text: str) -> str:
    plain = unicodedata.normalize("NFD", text)
    return "".join(c for c in plain if unicodedata.category(c) != "Mn").lower()


# What kinds make of a text before they look for the added tokens that are normalized.
READS: dict[str, Callable[[str], str]] = {
    "byte-level": str,
    "sentencepiece": lambda text: text.replace("▁", " "),
    "unigram": str,
    "wordpiece": _lower_case_without_accents,
}


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("strips", ["", "l", "r", "lr"])
@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_are_the_text_that_they_cover(
    rust: dict[str, Tokenizer], kind: str, strips: str, normalized: bool
) -> None:
    """What the Rust library's offsets say in one text at least, perhaps behind a word's space."""
    whole = Tokenizer.from_str(rust[kind].to_str())
    contents = ["qux", "▁qux", "Ġqux", "##qux", "qux</w>", " x", "<0x0A>q", "ö"]
    flags = {"lstrip": "l" in strips, "rstrip": "r" in strips, "normalized": normalized}
    whole.add_tokens([AddedToken(content, **flags) for content in contents])
    tokenizer = TextTokenizer.from_json(whole.to_str(), SPECIALS)
    for content in contents:
        token_id, covered = tokenizer.vocabulary[content], set()
        for text in (content, f"a{content} b", f"a {content} b", f"\n{content}\n"):
            encoding = whole.encode(text, add_special_tokens=False)
            for found, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
                if found == token_id:
                    read = READS[kind](text[start:stop]) if normalized else text[start:stop]
                    covered |= {read, f" {read}"}
        assert tokenizer.token_bytes[token_id].decode() in covered


def test_byte_level_normalizer_and_normalized_added_tokens() -> None:
    rust = Tokenizer(models.BPE({"a": 0, "Ġ": 1}, []))
    rust.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.ByteLevel()])
    rust.add_tokens([AddedToken("É", normalized=True)])
    tokenizer = TextTokenizer.from_json(rust.to_str())
    assert tokenizer.token_bytes == [b"a", b" ", "é".encode()]
    (encoded,) = tokenizer.encode(["a É"])
    assert encoded.ids.tolist() == [0, 1, 2]


def test_markers_are_found_by_asking() -> None:
    """Settings of many forms, and one answer."""
    spaces = {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": "_"}
    assert convert("_x", model=BPE, normalizer=spaces) == b" x"
    cut = {"type": "CharDelimiterSplit", "delimiter": " "}
    assert convert("x", model=WORD_LEVEL, pre_tokenizer=cut) == b" x"
    # The normalizer drops the spaces: there are no words then.
    glue = {"type": "Replace", "pattern": {"String": " "}, "content": ""}
    assert convert("x", model=WORD_LEVEL, normalizer=glue, pre_tokenizer=WORDS) == b"x"
    speech = {
        "type": "CTC",
        "pad_token": "<pad>",
        "word_delimiter_token": "|",
        "cleanup": True,
    }
    assert convert("|", model=WORD_LEVEL, decoder=speech) == b" "


def test_byte_tokens_are_fallback_only_where_they_are_read_as_bytes() -> None:
    vocabulary = {"<unk>": 0, "<0x41>": 1, "A": 2}
    for fallback in (False, True):
        rust = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
        if fallback:
            rust.decoder = decoders.ByteFallback()
        found = TextTokenizer.from_json(rust.to_str()).vocabulary_bytes
        assert found.fallback == ({1} if fallback else set())
        assert found.bytes[1] == (b"A" if fallback else b"<0x41>")


def test_unknown_model_type_is_named() -> None:
    with pytest.raises(FedfuseError, match="BPE, Unigram, WordLevel, WordPiece, got 'Trie'"):
        convert("a", model={"type": "Trie"})


@pytest.mark.parametrize("kind", KINDS)
def test_roles_and_special_ids(tokenizers: dict[str, TextTokenizer], kind: str) -> None:
    found = tokenizers[kind].vocabulary_bytes
    assert found.roles == {0: ("bos",), 1: ("eos",), 2: ("pad",), 3: ("unk",)}
    assert found.special == {0, 1, 2, 3}
    assert len(found.bytes) == len(found.used) == tokenizers[kind].vocab_size
    assert found.fallback == (set(range(4, 260)) if kind == "sentencepiece" else set())


def test_one_id_with_several_roles() -> None:
    tokenizer = by_hand("wordpiece", ["[U]", "end"], bos="end", eos="end", pad="end")
    assert tokenizer.vocabulary_bytes.roles == {0: ("unk",), 1: ("bos", "eos", "pad")}


def test_kinds_agree_on_a_word(tokenizers: dict[str, TextTokenizer]) -> None:
    for tokenizer in tokenizers.values():
        (encoded,) = tokenizer.encode(["on the"])
        assert b"".join(tokenizer.token_bytes[i] for i in encoded.ids).endswith(b"n the")

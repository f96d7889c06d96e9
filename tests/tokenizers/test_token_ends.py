"""Ends of tokens in bytes of the text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from fedfuse.tokenizers.token_ends import _from_offsets, token_ends
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.tokenizer_kinds import KINDS, LOSSLESS, TEXTS, by_hand, texts_strategy

WORDPIECES = [
    *("[UNK]", "a", "b", "cafe", "two", "##s", ",", "日", "##ne", "ﬁ", "e", "ᄀ", "##ᅡ"),
    *("12", "##3", "d"),
]


def check_sanity(tokenizer: TextTokenizer, text: str) -> None:
    """What holds for every tokenizer and text."""
    raw = text.encode()
    (encoded,) = tokenizer.encode([text])
    known = encoded.ends[encoded.ends >= 0]
    assert encoded.ends.dtype == encoded.ids.dtype == np.int64
    assert len(encoded.ids) == len(encoded.ends)
    assert (np.diff(known) >= 0).all()
    if len(encoded.ends):
        assert encoded.ends[-1] >= 0
        assert known[-1] <= len(raw)
        # What the tokens leave is whitespace, or was nothing to them at all.
        assert raw[known[-1] :].decode().strip() == ""


def check_lossless(tokenizer: TextTokenizer, text: str) -> None:
    """Where tokens are the text, every token's bytes are where its end says."""
    raw = text.encode()
    (encoded,) = tokenizer.encode([text])
    pieces = [tokenizer.token_bytes[i] for i in encoded.ids]
    start = len(raw) - len(b"".join(pieces))
    assert start in (0, -1)
    for piece, end in zip(pieces, encoded.ends.tolist(), strict=True):
        assert raw[max(start, 0) : end] == piece[max(-start, 0) :]
        start = end
    assert start == len(raw)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=texts_strategy())
def test_ends_are_sane(tokenizers: dict[str, TextTokenizer], kind: str, text: str) -> None:
    check_sanity(tokenizers[kind], text)


@pytest.mark.parametrize("kind", LOSSLESS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=texts_strategy())
def test_ends_are_exact(tokenizers: dict[str, TextTokenizer], kind: str, text: str) -> None:
    if "▁" not in text:  # SentencePiece cannot tell its marker from a space
        check_lossless(tokenizers[kind], text)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=texts_strategy())
def test_offsets_give_the_same_ends(
    tokenizers: dict[str, TextTokenizer], kind: str, text: str
) -> None:
    """The way over offsets, where bytes alone would do."""
    tokenizer = tokenizers[kind]
    raw = text.encode()
    encoding = tokenizer._rust.encode(text, add_special_tokens=False)
    pieces = [tokenizer.token_bytes[i] for i in encoding.ids]
    if b"".join(pieces) in (raw, b" " + raw) and pieces:
        slow = _from_offsets(text, raw, pieces, encoding.offsets)
        np.testing.assert_array_equal(slow, token_ends(text, pieces, lambda: encoding.offsets))


def test_byte_level_splits_an_emoji() -> None:
    tokenizer = by_hand("byte-level", ["a", "Ġ", "b", "ð", "Ł", "ĺ", "Ģ"])
    (encoded,) = tokenizer.encode(["a 😀b"])
    assert encoded.ids.tolist() == [0, 1, 3, 4, 5, 6, 2]
    assert encoded.ends.tolist() == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("text", "ids", "ends"),
    [
        ("a b", [1, 2], [1, 3]),
        ("  a  b ", [1, 2], [3, 6]),
        ("Café,", [3, 6], [5, 6]),
        ("twos d", [4, 5, 15], [3, 4, 6]),
        ("123", [13, 14], [2, 3]),
        ("a😀 b", [0, 2], [5, 7]),
        ("ﬁne", [9, 8], [3, 5]),
        # The accent is stripped, and belongs to its letter.
        ("e\u0301 b", [10, 2], [3, 5]),
        ("e\u0301", [10], [3]),
        # A syllable of three bytes that the normalizer takes apart: no byte lies between its parts.
        ("가 b", [11, 12, 2], [-1, 3, 5]),
        ("", [], []),
        (" ", [], []),
    ],
)
def test_wordpiece(text: str, ids: list[int], ends: list[int]) -> None:
    (encoded,) = by_hand("wordpiece", WORDPIECES).encode([text])
    assert encoded.ids.tolist() == ids
    assert encoded.ends.tolist() == ends


def test_space_put_in_front_covers_nothing(tokenizers: dict[str, TextTokenizer]) -> None:
    for kind in ("sentencepiece", "unigram"):
        tokenizer = tokenizers[kind]
        (encoded,) = tokenizer.encode(["zé"])
        first = tokenizer.token_bytes[encoded.ids[0]]
        assert first == b" "
        assert encoded.ends[0] == 0
        assert encoded.ends[-1] == 3


def test_offsets_with_a_changed_text(tokenizers: dict[str, TextTokenizer]) -> None:
    """NFKC makes two letters of the ligature; the end between them is nowhere in the text."""
    tokenizer = tokenizers["unigram"]
    (encoded,) = tokenizer.encode(["ﬁ"])
    pieces = [tokenizer.token_bytes[i] for i in encoded.ids]
    assert pieces == [b" ", b"f", b"i"]
    assert encoded.ends.tolist() == [0, -1, 3]


@pytest.mark.parametrize(
    ("text", "tokens", "ends"),
    [
        # The last bytes of \u00c1 and of the accent are equal by chance.
        ("A\u0301", "Ã ģ", [-1, 3]),
        ("xA\u0301x", "x Ã ģ x", [1, -1, 4, 5]),
        # Nothing was composed here, so the cut inside the first character is where it seems.
        ("ÃA\u0301", "Ã ĥ Ã ģ", [1, 2, -1, 5]),
        ("Ã", "Ã ĥ", [1, 2]),
        # Another character of as many bytes, the last of them the same.
        ("\u0341", "Ì ģ", [-1, 2]),
        # What is shared may begin before the tokens that share it.
        ("A\u0301日", "Ã ģ æ Ĺ ¥", [-1, 3, 4, 5, 6]),
    ],
)
def test_composed_characters_that_are_split(text: str, tokens: str, ends: list[int]) -> None:
    """GPT-NeoX's and Qwen's kind: NFC, then bytes."""
    rust = Tokenizer(models.BPE({c: i for i, c in enumerate("xAÃģĥæĹ¥Ì")}, []))
    rust.normalizer = normalizers.NFC()
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = TextTokenizer.from_json(rust.to_str())
    (encoded,) = tokenizer.encode([text])
    assert [rust.id_to_token(i) for i in encoded.ids] == tokens.split()
    assert encoded.ends.tolist() == ends


def test_stripped_accent_behind_a_split_character() -> None:
    """The accent belongs to the letter's last token, and the cut inside the letter is known."""
    rust = Tokenizer(models.BPE({c: i for i, c in enumerate("æĹ¥")}, []))
    rust.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    (encoded,) = TextTokenizer.from_json(rust.to_str()).encode(["日\u0301日"])
    assert encoded.ends.tolist() == [1, 2, 5, 6, 7, 8]


def test_space_of_a_last_piece_is_not_inside_the_word() -> None:
    model = models.BPE({"æ": 0, "Ĺ": 1, "¥</w>": 2}, [], end_of_word_suffix="</w>")
    rust = Tokenizer(model)
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer = TextTokenizer.from_json(rust.to_str())
    assert tokenizer.token_bytes[2] == b" \xa5"
    assert tokenizer.encode(["日 日"])[0].ends.tolist() == [1, 2, 3, 5, 6, 7]


def test_post_processor_does_not_trim_ends() -> None:
    """Tokens of whitespace end after it, also where offsets have to say so."""
    rust = Tokenizer(models.BPE({c: i for i, c in enumerate(["Ã", "©", "Ġ", "a", "ĠĠ"])}, []))
    rust.normalizer = normalizers.NFC()
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.post_processor = processors.ByteLevel(trim_offsets=True)
    (encoded,) = TextTokenizer.from_json(rust.to_str()).encode(["e\u0301 a "])
    assert encoded.ends.tolist() == [-1, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("normalizer", "text", "ends"),
    [
        (normalizers.Strip(), "  a b ", [3, 4, 5]),
        (normalizers.Lowercase(), "A B", [1, 2, 3]),
        (normalizers.Replace(Regex(" +"), " "), "a   b", [1, 4, 5]),
        (normalizers.Replace("\n", " "), "a\nb", [1, 2, 3]),
        # The library lays what was put in front over the first character.
        (normalizers.Prepend(" "), "a b", [0, 1, 2, 3]),
        (normalizers.Prepend("a"), "b", [0, 1]),
        (normalizers.StripAccents(), "a\u0301b", [3, 4]),
    ],
)
def test_lossy_normalizers(normalizer: object, text: str, ends: list[int]) -> None:
    rust = Tokenizer(models.WordLevel({"a": 0, "b": 1, " ": 2, "?": 3}, unk_token="?"))
    rust.normalizer = normalizer
    rust.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    assert TextTokenizer.from_json(rust.to_str()).encode([text])[0].ends.tolist() == ends


def test_sentencepiece_charsmap() -> None:
    """A trie over bytes, as SentencePiece compiles it; this one has a single rule: A becomes aé."""
    units = np.zeros(512, dtype="<u4")
    units[ord("A")] = ord("A") | 1 << 8 | 256 << 10  # the label, has a leaf, where the leaf is
    units[ord("A") ^ 256] = 1 << 31  # a leaf: the first of the results
    charsmap = np.array([units.nbytes], dtype="<u4").tobytes() + units.tobytes() + "aé\0".encode()
    vocabulary = [("<unk>", 0.0), ("▁", -1.0), ("a", -1.0), ("é", -1.0), ("B", -1.0)]
    rust = Tokenizer(models.Unigram(vocabulary, 0, False))
    rust.normalizer = normalizers.Precompiled(charsmap)
    rust.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = TextTokenizer.from_json(rust.to_str())
    assert tokenizer.token_bytes[1] == b" "
    (encoded,) = tokenizer.encode(["BAB B"])
    assert [rust.id_to_token(i) for i in encoded.ids] == ["▁", "B", "a", "é", "B", "▁", "B"]
    assert encoded.ends.tolist() == [0, 1, -1, 2, 3, 4, 5]


def test_ends_of_all_texts_reach_the_last_word(tokenizers: dict[str, TextTokenizer]) -> None:
    for tokenizer in tokenizers.values():
        for text, encoded in zip(TEXTS, tokenizer.encode(TEXTS), strict=True):
            assert encoded.ends[-1] >= len(text.rstrip().encode())

"""A tokenizer that nobody has seen before works without a change to the code.

Eleven kinds that no public model has in just this form, each with its own oddities. What a text is
to each of them is said here in plain Python, not asked of the tokenizer.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from fedfuse.alignment.positions import align_rows
from fedfuse.alignment.projection import project
from fedfuse.alignment.vocabulary_map import minimum_edit_distance_table
from fedfuse.data.sample import Sample
from fedfuse.tokenizers.label_rows import label_rows
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.alignment.test_vocabulary_map import texts_by_id
from tests.oracles import boundary, mined
from tests.tokenizer_kinds import SPECIALS, random_knowledge

SENTENCE = "the other hat of the other man"
SAMPLES = (
    ("", ""),
    ("", "   "),
    ("a", ""),
    ("", "\t\n"),
    (SENTENCE[:7], SENTENCE[7:]),
    ("The CAT sat,", "  and the dog did not. "),
    ("Café au", " lait, naïve e\u0301lan"),
    ("prices: 123", "45 or 6.78\n\tnew line"),
    ("日本語の", "テキスト und 中文"),
    ("a😀b ", "👩\u200d👩\u200d👧 ok"),
    ("ﬁne", " ½ … ｱ \uff11\uff123"),
    ("한글 가", "나"),
    ("c\u0327e\u0301\u0302", "o don't x-y"),
)
_CORPUS = [*([p + a for p, a in SAMPLES if p or a]), SENTENCE, SENTENCE, "she said hello"] * 5


@dataclass(frozen=True)
class Kind:
    """A tokenizer, what a text is to it, and whether whitespace is part of that."""

    make: Callable[[], Tokenizer]
    reads: Callable[[str], str]
    keeps_whitespace: bool


def _trained(
    model: object, trainer: type, size: int = 300, **settings: object
) -> Callable[[object, object], Tokenizer]:
    """A tokenizer of a model, with a normalizer and a pre-tokenizer still to come."""

    def make(normalizer: object, pre_tokenizer: object) -> Tokenizer:
        tokenizer = Tokenizer(model)
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        if pre_tokenizer is not None:
            tokenizer.pre_tokenizer = pre_tokenizer
        special = list(SPECIALS.values())
        sized = {"vocab_size": size, "special_tokens": special, "show_progress": False}
        tokenizer.train_from_iterator(_CORPUS, trainer(**sized, **settings))
        return tokenizer

    return make


def _bpe_of_bytes(size: int = 360, **settings: object) -> Callable[[object, object], Tokenizer]:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    model = models.BPE(**{k: v for k, v in settings.items() if k == "end_of_word_suffix"})
    return _trained(model, trainers.BpeTrainer, size, initial_alphabet=alphabet, **settings)


def _bytes_lower_case() -> Tokenizer:
    n, p = normalizers, pre_tokenizers
    return _bpe_of_bytes()(
        n.Sequence([n.NFKC(), n.Lowercase()]),
        p.Sequence([p.Digits(individual_digits=True), p.ByteLevel(add_prefix_space=False)]),
    )


def _bytes_by_normalizer() -> Tokenizer:
    n = normalizers
    return _bpe_of_bytes(max_token_length=6)(n.Sequence([n.NFC(), n.ByteLevel()]), None)


def _bytes_with_suffix() -> Tokenizer:
    n, p = normalizers, pre_tokenizers
    kept = Regex(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
    tokenizer = _bpe_of_bytes(900, end_of_word_suffix="</w>")(
        n.Sequence([n.NFC(), n.Replace(Regex(r"\s+"), " "), n.Lowercase()]),
        p.Sequence([p.Split(kept, "removed", invert=True), p.ByteLevel(add_prefix_space=False)]),
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _suffix() -> Tokenizer:
    n = normalizers
    model = models.BPE(end_of_word_suffix="</w>", unk_token="<unk>")
    return _trained(model, trainers.BpeTrainer, 500, end_of_word_suffix="</w>")(
        n.Sequence([n.Strip(), n.Lowercase()]), pre_tokenizers.Whitespace()
    )


def _prefix() -> Tokenizer:
    model = models.BPE(continuing_subword_prefix="@@", unk_token="<unk>")
    return _trained(model, trainers.BpeTrainer, continuing_subword_prefix="@@")(
        normalizers.NFKD(), pre_tokenizers.BertPreTokenizer()
    )


def _first_marker() -> Tokenizer:
    n = normalizers
    return _trained(models.Unigram(), trainers.UnigramTrainer, unk_token="<unk>")(
        n.Sequence([n.NFD(), n.StripAccents()]), pre_tokenizers.Metaspace(prepend_scheme="first")
    )


def _marked_words() -> Tokenizer:
    n, p = normalizers, pre_tokenizers
    return _trained(models.Unigram(), trainers.UnigramTrainer, unk_token="<unk>")(
        n.Sequence([n.NFKC(), n.Replace(Regex(r"\s{2,}"), " ")]),
        p.Sequence([p.WhitespaceSplit(), p.Metaspace()]),
    )


def _characters() -> Tokenizer:
    each = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    model = models.WordLevel(unk_token="<unk>")
    return _trained(model, trainers.WordLevelTrainer)(normalizers.NFC(), each)


def _words() -> Tokenizer:
    model = models.WordLevel(unk_token="<unk>")
    return _trained(model, trainers.WordLevelTrainer)(
        normalizers.Lowercase(), pre_tokenizers.Whitespace()
    )


def _odd_prefix() -> Tokenizer:
    p = pre_tokenizers
    model = models.WordPiece(continuing_subword_prefix="@@", unk_token="<unk>")
    return _trained(model, trainers.WordPieceTrainer, 400, continuing_subword_prefix="@@")(
        normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
        p.Sequence([p.BertPreTokenizer(), p.Digits(individual_digits=True)]),
    )


def _trie() -> Tokenizer:
    characters = sorted({character for text in _CORPUS for character in text})
    longer = ["the ", " the", "he", " other", " o", "日本", "\u200d👩", "e\u0301", "12"]
    tokens = [*SPECIALS.values(), *characters, *longer]
    return Tokenizer(
        models.WordPiece(
            {token: i for i, token in enumerate(tokens)},
            unk_token="<unk>",
            continuing_subword_prefix="",
            max_input_chars_per_word=1 << 20,
        )
    )


def _form(name: str, *, lower: bool = False, accents: bool = True) -> Callable[[str], str]:
    """A Unicode normal form, perhaps lower-cased, perhaps without combining marks."""

    def reads(text: str) -> str:
        text = unicodedata.normalize(name, text) if name else text
        text = text if accents else "".join(c for c in text if unicodedata.category(c) != "Mn")
        return text.lower() if lower else text

    return reads


KINDS = {
    "byte-level BPE, NFKC, lower case, digits": Kind(
        _bytes_lower_case, _form("NFKC", lower=True), True
    ),
    "byte-level BPE by normalizer": Kind(_bytes_by_normalizer, _form("NFC"), True),
    "byte-level BPE, suffix": Kind(_bytes_with_suffix, _form("NFC", lower=True), False),
    "BPE, suffix": Kind(_suffix, _form("", lower=True), False),
    "BPE, prefix": Kind(_prefix, _form("NFKD"), False),
    "Unigram, first marker, no accents": Kind(_first_marker, _form("NFD", accents=False), True),
    "Unigram, words": Kind(_marked_words, _form("NFKC"), False),
    "WordLevel, characters": Kind(_characters, _form("NFC"), True),
    "WordLevel, words": Kind(_words, _form("", lower=True), False),
    "WordPiece, odd prefix, digits": Kind(_odd_prefix, _form("NFD", accents=False), False),
    "greedy trie": Kind(_trie, _form(""), True),
}


@pytest.fixture(scope="module")
def unseen() -> dict[str, TextTokenizer]:
    """All kinds, some with a token to begin with and some without."""
    made = {}
    for number, (name, kind) in enumerate(KINDS.items()):
        roles = ("bos", "eos", "unk") if number % 2 else ("pad", "unk")
        specials = {role: SPECIALS[role] for role in roles}
        made[name] = TextTokenizer.from_json(kind.make().to_str(), specials)
    return made


def said(kind: Kind, text: bytes) -> bytes:
    """What tokens of this kind can say of a text: without whitespace where they have none."""
    return text if kind.keeps_whitespace else b"".join(text.split())


@pytest.mark.parametrize("name", KINDS)
def test_surfaces_together_are_the_text(unseen: dict[str, TextTokenizer], name: str) -> None:
    tokenizer, kind = unseen[name], KINDS[name]
    for parts in SAMPLES:
        text = "".join(parts)
        (encoded,) = tokenizer.encode([text])
        assert tokenizer.special_ids["unk"] not in encoded.ids
        joined = b"".join(tokenizer.token_bytes[i] for i in encoded.ids)
        expected = said(kind, kind.reads(text).encode())
        found = said(kind, joined)
        # A space may be put in front of the first word.
        assert found in (expected, b" " + expected)


@pytest.mark.parametrize("name", KINDS)
def test_words_begin_with_a_space(unseen: dict[str, TextTokenizer], name: str) -> None:
    tokenizer = unseen[name]
    (encoded,) = tokenizer.encode([SENTENCE])
    joined = b"".join(tokenizer.token_bytes[i] for i in encoded.ids).decode()
    assert joined.split(" ") in (SENTENCE.split(" "), ["", *SENTENCE.split(" ")])


@pytest.mark.parametrize("name", KINDS)
def test_ends_are_where_the_tokens_text_ends(unseen: dict[str, TextTokenizer], name: str) -> None:
    """The text between two known ends, as this kind reads it, is what the token says."""
    tokenizer, kind = unseen[name], KINDS[name]
    checked = tokens = 0
    for parts in SAMPLES:
        raw = "".join(parts).encode()
        (encoded,) = tokenizer.encode([raw.decode()])
        known = encoded.ends[encoded.ends >= 0]
        assert (np.diff(known) >= 0).all()
        assert raw[known[-1] if len(known) else 0 :].strip() == b""
        begin = 0
        for token, end in zip(encoded.ids.tolist(), encoded.ends.tolist(), strict=True):
            tokens += 1
            if begin >= 0 and end >= 0:
                checked += 1
                piece = tokenizer.token_bytes[token]
                assert _read(kind, raw[begin:end]).strip() == piece.strip()
            begin = end
    assert checked > 0.75 * tokens


def _read(kind: Kind, part: bytes) -> bytes:
    """Part of a text as this kind reads it; part of a character is as it is."""
    try:
        return kind.reads(part.decode()).encode()
    except UnicodeDecodeError:
        return part


@pytest.mark.parametrize(("one", "other"), list(permutations(KINDS, 2)))
def test_pair(unseen: dict[str, TextTokenizer], one: str, other: str) -> None:
    """Table, alignment and projection of every pair, texts cut at different places."""
    source, target = unseen[one], unseen[other]
    table = minimum_edit_distance_table(source, target, None)
    candidates, special = texts_by_id(target), source.vocabulary_bytes.special
    for token in range(4, source.vocab_size, 83):  # the oracle is slow
        assert token not in special
        expected = mined.nearest(source.token_bytes[token], candidates)
        assert (table.best[token], table.distance[token, 0]) == expected

    samples = [Sample(*parts) for parts in SAMPLES]
    for source_length, target_length in ((100, 100), (7, 12)):
        rows = label_rows(source, samples, source_length)[1]
        goal = label_rows(target, samples, target_length)[1]
        alignment = align_rows(rows, goal)
        texts = [sample.text for sample in samples]
        assert alignment.source_row.tolist() == boundary.matches(rows, goal, texts)
        matched = alignment.source_row >= 0
        assert matched.any()

        knowledge = random_knowledge(len(rows.token), source.vocab_size, rows.offsets, seed=0)
        found = project(knowledge.distribution, table, alignment, goal)
        mass = np.exp(found.logprobs.astype(np.float64)).sum(axis=1) + np.exp(found.tail_logprob)
        np.testing.assert_allclose(mass, 1.0, atol=1e-5)
        assert found.weight.tolist() == matched.astype(float).tolist()
        assert found.indices.max() < target.vocab_size

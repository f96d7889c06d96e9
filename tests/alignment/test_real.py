"""The public tokenizers, where their files are: ends, surfaces and alignment on awkward texts."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from fedfuse.alignment.positions import align_rows
from fedfuse.alignment.vocabulary_map import minimum_edit_distance_table
from fedfuse.data.sample import Sample
from fedfuse.tokenizers.label_rows import label_rows
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.tokenizer_kinds import MATERIAL, TEXTS, load_real
from tests.tokenizers.test_token_ends import check_lossless, check_sanity

SIZES = {50257, 32000, 32768, 50277, 151646, 30522}
needs = pytest.mark.skipif(
    not MATERIAL.is_dir(), reason="no tokenizers in ../shared/material/tokenizers"
)


@pytest.fixture(scope="module")
def trio() -> dict[str, TextTokenizer]:
    """One of each family."""
    return {name: load_real(name) for name in ("gpt2", "llama2", "bert_uncased")}


def test_ends(real: TextTokenizer) -> None:
    assert real.vocab_size in SIZES
    assert real.bos_id >= 0
    composed = real._spec["normalizer"] and real._spec["normalizer"]["type"] == "NFC"
    lossy = real._spec["model"]["type"] == "WordPiece"
    for text in TEXTS:
        check_sanity(real, text)
        if not lossy and not (composed and "\u0301" in text):
            check_lossless(real, text)


@needs
def test_the_end_of_a_word_is_the_same_for_all(trio: dict[str, TextTokenizer]) -> None:
    """Every place between words is a place between tokens, for every tokenizer."""
    text = "The cat sat on 12 mats"
    places = {3, 7, 11, 14, 17, 22}
    for tokenizer in trio.values():
        assert places <= set(tokenizer.encode([text])[0].ends.tolist())


@needs
def test_known_splits(trio: dict[str, TextTokenizer]) -> None:
    text = "a😀 日"
    assert trio["gpt2"].encode([text])[0].ends.tolist() == [1, 4, 5, 7, 8, 9]
    assert trio["llama2"].encode([text])[0].ends.tolist() == [1, 2, 3, 4, 5, 6, 9]
    assert trio["bert_uncased"].encode([text])[0].ends.tolist() == [5, 9]
    assert trio["llama2"].encode([" a"])[0].ends.tolist() == [0, 2]


@needs
def test_boundary_alignment(trio: dict[str, TextTokenizer]) -> None:
    samples = [Sample(text[:4], text[4:]) for text in TEXTS]
    rows = {name: label_rows(tokenizer, samples, 128)[1] for name, tokenizer in trio.items()}
    for one, other in permutations(trio, 2):
        found = align_rows(rows[one], rows[other]).source_row
        matched = found >= 0
        assert matched.mean() > 0.3
        assert (rows[one].byte_start[found[matched]] == rows[other].byte_start[matched]).all()


@needs
def test_words_are_found_in_the_other_vocabulary(trio: dict[str, TextTokenizer]) -> None:
    """A table of everything is slow for a test: the surfaces are what makes it exact."""
    sets = {name: set(tokenizer.vocabulary_bytes.bytes) for name, tokenizer in trio.items()}
    for word in (b" the", b" people", b"ing", b" and"):
        assert all(word in tokens for tokens in sets.values())
    assert "日".encode() in sets["llama2"]
    assert {bytes([b]) for b in range(256)} <= sets["gpt2"] & sets["llama2"]


@needs
def test_own_table_is_the_identity(trio: dict[str, TextTokenizer]) -> None:
    table = minimum_edit_distance_table(trio["llama2"], trio["llama2"], None)
    np.testing.assert_array_equal(table.best, np.arange(32000))


@needs
@pytest.mark.parametrize("name", ["gpt2", "llama2", "bert_uncased"])
def test_json_round_trip(trio: dict[str, TextTokenizer], name: str) -> None:
    first = trio[name]
    again = TextTokenizer.from_json(first.to_json())
    assert again.fingerprint == first.fingerprint
    assert again.special_ids == first.special_ids
    for one, other in zip(first.encode(TEXTS), again.encode(TEXTS), strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert one.ends.tolist() == other.ends.tolist()

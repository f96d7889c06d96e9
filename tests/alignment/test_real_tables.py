"""Tables between the public tokenizers, where their files are, against a search of everything."""

from __future__ import annotations

import random

import numpy as np
import pytest

from benchmarks.mined_oracle import oracle
from fedfuse.alignment.vocabulary_map import VocabularyTable, minimum_edit_distance_table
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.oracles.mined import edit_distance
from tests.tokenizer_kinds import MATERIAL, load_real

SAMPLE = 2000
DIRECTIONS = (("gpt2", "llama2"), ("llama2", "gpt2"))

pytestmark = pytest.mark.skipif(
    not MATERIAL.is_dir(), reason="no tokenizers in ../shared/material/tokenizers"
)


@pytest.fixture(scope="module", params=DIRECTIONS, ids="-".join)
def real_table(
    request: pytest.FixtureRequest,
) -> tuple[TextTokenizer, TextTokenizer, VocabularyTable]:
    source, target = map(load_real, request.param)
    return source, target, minimum_edit_distance_table(source, target, None)


def test_random_tokens(real_table: tuple[TextTokenizer, TextTokenizer, VocabularyTable]) -> None:
    source, target, table = real_table
    chosen = random.Random(0).sample(range(source.vocab_size), SAMPLE)
    # Where rules other than the nearest text decide: specials, and bytes with two tokens.
    shapes = source.vocabulary_bytes
    chosen += sorted(shapes.special) + sorted(shapes.fallback)
    ids, distances, _ = oracle(source, target, "bytes", only=chosen)
    np.testing.assert_array_equal(table.target[chosen, 0], ids)
    np.testing.assert_array_equal(table.distance[chosen, 0], distances)


def test_distances_are_true(
    real_table: tuple[TextTokenizer, TextTokenizer, VocabularyTable],
) -> None:
    """By the textbook, since the search of everything takes its distances from the same library."""
    source, target, table = real_table
    chosen = random.Random(1).sample(range(source.vocab_size), SAMPLE)
    special = source.vocabulary_bytes.special
    for token in set(chosen) - special:
        found = target.token_bytes[table.best[token]]
        assert table.distance[token, 0] == edit_distance(source.token_bytes[token], found)

"""What holds for every text between every ordered pair of the public tokenizers.

``FEDFUSE_EXAMPLES`` texts a pair and property: 200 by default, 10,000 in ``make test-slow``.
"""

from __future__ import annotations

import os
from functools import cache
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfuse.alignment.positions import Alignment, align_rows
from fedfuse.alignment.projection import project
from fedfuse.alignment.vocabulary_map import VocabularyTable, minimum_edit_distance_table
from fedfuse.data.sample import Sample
from fedfuse.knowledge.record import Knowledge
from fedfuse.sparse import SparseDistribution
from fedfuse.tokenizers.label_rows import LabelRows, label_rows
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.tokenizer_kinds import (
    MATERIAL,
    REAL,
    load_real,
    random_knowledge,
    texts_strategy,
)

EXAMPLES = int(os.environ.get("FEDFUSE_EXAMPLES", "200"))
# Real tables between six vocabularies take minutes. That mass is conserved does not depend on what
# a table says, so the quick suite has random ones, of as few source tokens as knowledge is about.
REAL_TABLES = EXAMPLES >= 10_000
QUICK_VOCABULARY = 512

many = settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
lengths = st.sampled_from([2, 5, 9, 64])
pairs = pytest.mark.parametrize(("one", "other"), list(permutations(REAL, 2)))


def public(name: str) -> TextTokenizer:
    """One of the public tokenizers; skips by name where the material is absent."""
    if not (MATERIAL / name).is_dir():
        pytest.skip(f"no tokenizer {name} in ../shared/material/tokenizers")
    return load_real(name)


@cache
def table_of(one: str, other: str) -> VocabularyTable:
    """From one to the other: the real one, or a random one in the quick suite."""
    source, target = load_real(one), load_real(other)
    if REAL_TABLES:
        return minimum_edit_distance_table(source, target, None)
    # Few targets, so that entries collide.
    rng = np.random.default_rng(0)
    ids = rng.choice(target.vocab_size, 64)[rng.integers(0, 64, (QUICK_VOCABULARY, 1))]
    return VocabularyTable(ids, np.ones(ids.shape, dtype=np.int32))


def check_pairs(source: LabelRows, target: LabelRows, found: Alignment, mode: str) -> None:
    """What every alignment owes, and what those by boundaries owe besides."""
    matched = found.source_row >= 0
    rows = found.source_row[matched]
    assert found.source_row.shape == target.token.shape
    assert (rows < len(source.token)).all()
    assert (source.sample_of_row[rows] == target.sample_of_row[matched]).all()
    assert (np.diff(rows) >= 0).all()
    if mode == "exact-boundary":
        assert len(np.unique(rows)) == len(rows)
    if mode != "dtw":
        # A token that is seen before its end still begins where the source's row does.
        level = matched & (found.tokens_into == 0)
        before = target.byte_start[level]
        assert (before >= 0).all()
        assert (source.byte_start[found.source_row[level]] == before).all()
    if mode == "events":
        paired = found.source_row[matched]
        last = paired + found.num_source_tokens[matched] - 1
        whole = found.num_source_tokens[matched] > 1
        assert (source.byte_end[last[whole]] == target.byte_end[matched][whole]).all()


def check_text(name: str, sample: Sample, rows: LabelRows, cut: int) -> None:
    """Label rows cover the answer, in order, as far as the text was not cut off."""
    raw = sample.text.encode()
    known = rows.byte_end[rows.byte_end >= 0]
    assert (np.diff(known) >= 0).all()
    assert (known > sample.prompt_bytes).all()
    assert (known <= len(raw)).all()
    assert (rows.row < cut - 1).all()
    assert (np.diff(rows.row) == 1).all()
    assert (rows.byte_start[1:] == rows.byte_end[:-1]).all(), name


@pairs
def test_alignment(one: str, other: str) -> None:
    source, target = public(one), public(other)
    shapes = source.vocabulary_bytes, target.vocabulary_bytes

    @many
    @given(texts_strategy(8), texts_strategy(), lengths, lengths)
    def check(prompt: str, answer: str, source_length: int, target_length: int) -> None:
        sample = Sample(prompt, answer)
        rows = label_rows(source, [sample], source_length)[1]
        goal = label_rows(target, [sample], target_length)[1]
        check_text(one, sample, rows, source_length)
        check_text(other, sample, goal, target_length)
        for mode in ("exact-boundary", "events", "dtw"):
            check_pairs(rows, goal, align_rows(rows, goal, mode, *shapes), mode)
        # Where both begin at the first byte of the answer, they are paired there.
        if len(rows.token) and len(goal.token) and rows.byte_start[0] == goal.byte_start[0] >= 0:
            found = align_rows(rows, goal).source_row[goal.byte_start == goal.byte_start[0]]
            assert (rows.byte_start[found[-1]], found[-1] >= 0) == (rows.byte_start[0], True)

    check()


@pairs
def test_projection_conserves_mass(one: str, other: str) -> None:
    source, target = public(one), public(other)
    table = table_of(one, other)

    @many
    @given(texts_strategy(8), texts_strategy(), lengths, st.booleans(), st.integers(0, 2**32 - 1))
    def check(prompt: str, answer: str, length: int, first: bool, seed: int) -> None:
        samples = [Sample(prompt, answer)]
        rows = label_rows(source, samples, 64)[1]
        goal = label_rows(target, samples, length)[1]
        alignment = align_rows(rows, goal)
        knowledge = random_knowledge(len(rows.token), len(table.target), rows.offsets, seed=seed)
        found = project(
            knowledge.distribution,
            table,
            alignment,
            goal,
            duplicate_tokens="first" if first else "sum",
        )
        check_mass(found, alignment, target)

    check()


def check_mass(found: SparseDistribution, alignment: Alignment, target: TextTokenizer) -> None:
    """Every row's mass is one; rows without a teacher have none of it kept."""
    kept = np.exp(found.logprobs.astype(np.float64)).sum(axis=1)
    np.testing.assert_allclose(kept + np.exp(found.tail_logprob), 1.0, atol=1e-5)
    matched = alignment.source_row >= 0
    assert (found.weight == matched).all()
    assert (kept[~matched] == 0).all()
    assert found.indices.min(initial=0) >= 0
    assert found.indices.max(initial=0) < target.vocab_size


@pytest.mark.parametrize("name", REAL)
def test_a_tokenizer_teaches_itself_as_it_is(name: str) -> None:
    tokenizer = public(name)
    table = minimum_edit_distance_table(tokenizer, tokenizer, None)
    np.testing.assert_array_equal(table.best, np.arange(tokenizer.vocab_size))
    assert not table.distance.any()

    @many
    @given(texts_strategy(8), texts_strategy(), st.integers(0, 2**32 - 1))
    def check(prompt: str, answer: str, seed: int) -> None:
        rows = label_rows(tokenizer, [Sample(prompt, answer)], 64)[1]
        alignment = align_rows(rows, rows)
        knowledge = random_knowledge(len(rows.token), len(table.target), rows.offsets, seed=seed)
        found = project(knowledge.distribution, table, alignment, rows)
        matched = alignment.source_row >= 0
        # Rows that are not paired with themselves share their place, or do not know it.
        assert (alignment.source_row[matched] == np.flatnonzero(matched)).all()
        places = rows.byte_start[rows.byte_start >= 0]
        assert matched.sum() == len(np.unique(places))
        check_same(knowledge, found, matched)

    check()


def check_same(knowledge: Knowledge, found: SparseDistribution, matched: np.ndarray) -> None:
    """What comes out is what went in."""
    np.testing.assert_allclose(
        found.logprobs[matched], knowledge.logprobs[matched], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        found.tail_logprob[matched], knowledge.tail_logprob[matched], rtol=1e-5, atol=1e-5
    )
    # Entries of equal probability may change places.
    tied = np.isclose(np.diff(knowledge.logprobs[matched], axis=1), 0, atol=1e-5).any(axis=1)
    np.testing.assert_array_equal(found.indices[matched][~tied], knowledge.indices[matched][~tied])

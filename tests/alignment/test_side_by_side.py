"""Texts side by side: blocks that put together are the text, and who has a partner, by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedfuse.alignment.positions import MODES
from fedfuse.alignment.side_by_side import (
    MATCHES,
    Block,
    Coverage,
    _first_of_block,
    align_texts,
    text_rows,
)
from fedfuse.alignment.vocabulary_map import VocabularyTable, minimum_edit_distance_table
from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError
from fedfuse.tokenizers.label_rows import label_rows
from fedfuse.tokenizers.tokenizer import TextTokenizer, TokenizedText
from tests.tokenizer_kinds import KINDS, LOSSLESS, TEXTS, by_hand, texts_strategy

Tokenizers = dict[str, TextTokenizer]


def table_of(source: TextTokenizer, target: TextTokenizer, m: int = 2) -> VocabularyTable:
    return minimum_edit_distance_table(source, target, None, m=m)


def bpe(*tokens: str, **specials: str) -> TextTokenizer:
    return by_hand("byte-level", list(tokens), **specials)


def sides(block: Block) -> tuple[list[bytes], list[bytes]]:
    return [t.raw for t in block.source], [t.raw for t in block.target]


@pytest.fixture(scope="module")
def pair() -> tuple[TextTokenizer, TextTokenizer]:
    """Single letters, and letters of which a and b join."""
    spec = json.loads(bpe("a", "b", "c", "ab", "d").to_json())["tokenizer"]
    spec["model"]["merges"] = [["a", "b"]]
    return bpe("a", "b", "c", "d"), TextTokenizer.from_json(json.dumps(spec))


class TestTexts:
    def test_blocks_by_hand(self, pair: tuple[TextTokenizer, TextTokenizer]) -> None:
        source, target = pair
        coverage, (alignment,) = align_texts(source, target, table_of(source, target), ["abcd"])
        assert [sides(block) for block in alignment.blocks] == [
            ([b"a", b"b"], [b"ab"]),
            ([b"c"], [b"c"]),
            ([b"d"], [b"d"]),
        ]
        assert [(b.start, b.stop) for b in alignment.blocks] == [(0, 2), (2, 3), (3, 4)]
        # The table leads a to a and b to b, of which the block's target has neither.
        assert [block.match for block in alignment.blocks] == ["none", "exact", "exact"]
        assert [t.paired for block in alignment.blocks for t in block.target] == [True] * 3
        assert [t.paired for block in alignment.blocks for t in block.source] == [
            True,
            False,
            True,
            True,
        ]
        assert coverage == Coverage(4, 3, with_source=3, used=3, exact=4)

    def test_modes_by_hand(self, pair: tuple[TextTokenizer, TextTokenizer]) -> None:
        letters, merged = pair
        forth, back = table_of(letters, merged), table_of(merged, letters)
        # Both of the source's rows make the target's.
        coverage, _ = align_texts(letters, merged, forth, ["abcd"], mode="events")
        assert (coverage.with_source, coverage.used) == (3, 4)
        # The target's second row has no boundary of the source, but stands inside its token.
        coverage, (alignment,) = align_texts(merged, letters, back, ["abcd"])
        assert (coverage.with_source, coverage.used, coverage.target_tokens) == (3, 3, 4)
        assert [t.paired for t in alignment.blocks[0].target] == [True, False]
        coverage, _ = align_texts(merged, letters, back, ["abcd"], mode="events")
        assert (coverage.with_source, coverage.used) == (4, 3)

    def test_near(self, pair: tuple[TextTokenizer, TextTokenizer]) -> None:
        letters, merged = pair
        # ab is one edit from both a and b: it leads to a, which the block has.
        _, (alignment,) = align_texts(merged, letters, table_of(merged, letters), ["abcd"])
        assert [block.match for block in alignment.blocks] == ["near", "exact", "exact"]
        (token,) = alignment.blocks[0].source
        assert (token.nearest, token.distance) == (b"a", 1)
        assert all(t.nearest is None for t in alignment.blocks[0].target)

    def test_one_token_each_of_other_bytes_is_not_exact(self) -> None:
        source, target = by_hand("wordpiece", ["[UNK]", "b", "a"]), bpe("A", "xyz")
        _, (alignment,) = align_texts(source, target, table_of(source, target), ["A"])
        (block,) = alignment.blocks
        assert [t.id for t in block.source] == [2]
        assert [t.id for t in block.target] == [0]
        assert block.match == "near"

    def test_tokens_that_end_nobody_knows_where(self) -> None:
        text = TokenizedText(np.array([5, 6, 7]), np.array([1, -1, -1]))
        assert _first_of_block(text, np.array([1, 4])) == [0, 1, 3]
        assert _first_of_block(text, np.array([4])) == [0, 3]

    def test_limit_is_over_all_texts(self, pair: tuple[TextTokenizer, TextTokenizer]) -> None:
        source, target = pair
        texts = ["abcd", "cd", "abab"]
        table = table_of(source, target)
        coverage, alignments = align_texts(source, target, table, texts, limit=4)
        assert [len(a.blocks) for a in alignments] == [3, 1, 0]
        assert [a.total for a in alignments] == [3, 2, 2]
        assert coverage == align_texts(source, target, table, texts)[0]
        assert [a.text for a in alignments] == texts

    def test_unknown_positions(self, pair: tuple[TextTokenizer, TextTokenizer]) -> None:
        with pytest.raises(FedfuseError, match=r"expected events.*got 'guess'"):
            align_texts(*pair, table_of(*pair), ["a"], mode="guess")

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("target_kind", KINDS)
    @pytest.mark.parametrize("source_kind", KINDS)
    def test_every_token_is_in_one_block(
        self, tokenizers: Tokenizers, source_kind: str, target_kind: str, mode: str
    ) -> None:
        source, target = tokenizers[source_kind], tokenizers[target_kind]
        table = table_of(source, target)
        coverage, alignments = align_texts(source, target, table, TEXTS, mode=mode)
        for alignment in alignments:
            _check_blocks(source, target, alignment.text, alignment.blocks)
            assert alignment.total == len(alignment.blocks)
        tokens = [t for a in alignments for b in a.blocks for t in b.target]
        assert sum(t.paired for t in tokens) == coverage.with_source
        tokens = [t for a in alignments for b in a.blocks for t in b.source]
        assert sum(t.paired for t in tokens) == coverage.used
        assert coverage.used <= coverage.source_tokens <= len(tokens)
        if source is target and mode == "exact-boundary":
            assert all(
                b.match == "exact" for a in alignments for b in a.blocks if len(b.source) == 1
            )


def _check_blocks(
    source: TextTokenizer, target: TextTokenizer, text: str, blocks: tuple[Block, ...]
) -> None:
    """Blocks follow each other through the text, and hold each side's tokens in order."""
    raw = text.encode()
    assert [b.start for b in blocks] == [0, *(b.stop for b in blocks[:-1])]
    assert blocks[-1].stop == len(raw)
    assert all(b.start < b.stop and b.match in MATCHES for b in blocks)
    for tokenizer, side in ((source, 0), (target, 1)):
        (tokenized,) = tokenizer.encode([text])
        found = [(t.id, t.raw) for b in blocks for t in (b.source, b.target)[side]]
        assert [i for i, _ in found] == tokenized.ids.tolist()
        assert [r for _, r in found] == [tokenizer.token_bytes[i] for i in tokenized.ids]
        for block in blocks if b"".join(r for _, r in found) == raw else ():
            assert b"".join(sides(block)[side]) == raw[block.start : block.stop]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(text=texts_strategy().filter(bool), pair=st.permutations(KINDS))
def test_any_text_is_laid_out_whole(tokenizers: Tokenizers, text: str, pair: list[str]) -> None:
    source, target = tokenizers[pair[0]], tokenizers[pair[1]]
    blank = np.zeros((source.vocab_size, 2), dtype=np.int64)
    table = VocabularyTable(blank, blank.astype(np.int32))
    _, (alignment,) = align_texts(source, target, table, [text])
    _check_blocks(source, target, text, alignment.blocks)
    if pair[0] in LOSSLESS and pair[1] in LOSSLESS:
        assert all(block.source and block.target for block in alignment.blocks)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_federation(tokenizers: Tokenizers, kind: str) -> None:
    tokenizer = tokenizers[kind]
    _, expected = label_rows(tokenizer, [Sample("", text) for text in TEXTS], 10_000)
    found = text_rows(tokenizer.encode(TEXTS))
    for field in ("offsets", "token", "row", "byte_start", "byte_end"):
        assert getattr(found, field).tolist() == getattr(expected, field).tolist()
    assert len(text_rows([]).token) == 0


def test_real_ones(real: TextTokenizer) -> None:
    """A tokenizer against itself, on all that is in the world."""
    blank = np.arange(real.vocab_size)[:, None].repeat(2, axis=1)
    table = VocabularyTable(blank, np.zeros(blank.shape, dtype=np.int32))
    coverage, alignments = align_texts(real, real, table, TEXTS)
    for alignment in alignments:
        _check_blocks(real, real, alignment.text, alignment.blocks)
    assert coverage.exact == coverage.source_tokens == coverage.target_tokens

"""What a table does to a vocabulary: numbers by hand, and against plain counting."""

from __future__ import annotations

import pytest
from rapidfuzz.distance import Levenshtein

from fedfuse.alignment.statistics import TableStatistics, table_examples, table_statistics
from fedfuse.alignment.vocabulary_map import VocabularyTable, minimum_edit_distance_table
from fedfuse.errors import FedfuseError
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.tokenizer_kinds import KINDS, by_hand

Tokenizers = dict[str, TextTokenizer]


def table_of(source: TextTokenizer, target: TextTokenizer, m: int = 2) -> VocabularyTable:
    return minimum_edit_distance_table(source, target, None, m=m)


def bpe(*tokens: str, **specials: str) -> TextTokenizer:
    return by_hand("byte-level", list(tokens), **specials)


@pytest.fixture(scope="module")
def hand() -> tuple[TextTokenizer, TextTokenizer]:
    """Distances 0, 1 (a tie), 1, 2 and 8, and two specials."""
    source = bpe("ab", "ax", "q", "aceg", "longword", "<s>", "<u>", bos="<s>", unk="<u>")
    return source, bpe("ab", "ac", "z", "</s>", eos="</s>")


class TestStatistics:
    def test_by_hand(self, hand: tuple[TextTokenizer, TextTokenizer]) -> None:
        source, target = hand
        table = table_of(source, target)
        # bos becomes eos; the target has no unk.
        assert table_statistics(source, target, table) == TableStatistics(
            source_vocab=7,
            target_vocab=4,
            tokens=5,
            by_distance=(1, 2, 1, 0, 1),
            ties=_slow_ties(source, target),
            ambiguous=_slow_ambiguous(source, table),
            specials=2,
            specials_mapped=1,
        )

    def test_ties_and_sharing(self) -> None:
        source = bpe("ab", "ax", "q")
        target = bpe("ab", "ac", "z")
        statistics = table_statistics(source, target, table_of(source, target))
        assert statistics.by_distance == (1, 2, 0, 0, 0)
        assert statistics.ties == 1  # ax, as near to ab as to ac
        assert statistics.ambiguous == 2  # ab and ax, both to ab

    def test_itself(self, tokenizers: Tokenizers) -> None:
        for tokenizer in tokenizers.values():
            statistics = table_statistics(tokenizer, tokenizer, table_of(tokenizer, tokenizer))
            assert statistics.by_distance == (statistics.tokens, 0, 0, 0, 0)
            assert statistics.ties == statistics.ambiguous == 0
            assert statistics.specials_mapped == statistics.specials

    @pytest.mark.parametrize("target_kind", KINDS)
    @pytest.mark.parametrize("source_kind", KINDS)
    def test_against_counting(
        self, tokenizers: Tokenizers, source_kind: str, target_kind: str
    ) -> None:
        source, target = tokenizers[source_kind], tokenizers[target_kind]
        table = table_of(source, target)
        statistics = table_statistics(source, target, table)
        assert sum(statistics.by_distance) == statistics.tokens
        assert statistics.tokens + statistics.specials <= source.vocab_size
        assert statistics.ambiguous == _slow_ambiguous(source, table)
        if source_kind != target_kind:
            assert statistics.ties == _slow_ties(source, target)

    def test_ids_that_no_token_has_are_not_counted(self) -> None:
        parsed = bpe("a", "b").to_json().replace('"b":1', '"b":9')
        source = TextTokenizer.from_json(parsed)
        target = bpe("a", "b")
        statistics = table_statistics(source, target, table_of(source, target))
        assert (statistics.source_vocab, statistics.tokens) == (10, 2)
        assert statistics.by_distance == (2, 0, 0, 0, 0)
        assert statistics.ambiguous == 0  # though the table leads all ids between to "a"

    def test_one_target_a_token_cannot_tell_ties(self, tokenizers: Tokenizers) -> None:
        source, target = tokenizers["byte-level"], tokenizers["unigram"]
        with pytest.raises(FedfuseError, match=r"expected at least 2 targets a token.*got 1"):
            table_statistics(source, target, table_of(source, target, m=1))

    def test_a_target_of_one_token_has_no_ties(self) -> None:
        source, target = bpe("a", "b"), bpe("a")
        statistics = table_statistics(source, target, table_of(source, target))
        assert (statistics.ties, statistics.ambiguous) == (0, 2)


def _texts(tokenizer: TextTokenizer) -> dict[int, bytes]:
    """Ids of tokens for text, by another way than the module's."""
    special = set(tokenizer.special_ids.values()) | tokenizer.marked_special
    ids = sorted(set(tokenizer.vocabulary.values()) - special)
    return {i: tokenizer.token_bytes[i] for i in ids if tokenizer.token_bytes[i]}


def _slow_ties(source: TextTokenizer, target: TextTokenizer) -> int:
    ties = 0
    for raw in _texts(source).values():
        distances = sorted(Levenshtein.distance(raw, t) for t in set(_texts(target).values()))
        ties += len(distances) > 1 and distances[0] == distances[1]
    return ties


def _slow_ambiguous(source: TextTokenizer, table: VocabularyTable) -> int:
    targets = [int(table.best[i]) for i in _texts(source)]
    return sum(targets.count(target) > 1 for target in targets)


def test_examples_are_spread_over_every_distance(
    hand: tuple[TextTokenizer, TextTokenizer], tokenizers: Tokenizers
) -> None:
    groups = table_examples(*hand, table_of(*hand))
    shown = [[(e.source_bytes, e.distance) for e in group] for group in groups]
    assert shown == [[(b"ab", 0)], [(b"ax", 1), (b"q", 1)], [(b"aceg", 2)], [], [(b"longword", 8)]]
    assert [(e.source, e.target, e.target_bytes) for e in groups[2]] == [(3, 1, b"ac")]

    source, target = tokenizers["byte-level"], tokenizers["wordpiece"]
    table = table_of(source, target)
    counts = table_statistics(source, target, table).by_distance
    for group, count in zip(table_examples(source, target, table, each=3), counts, strict=True):
        assert len(group) == min(3, count)
        ids = [example.source for example in group]
        assert ids == sorted(set(ids))

"""What a vocabulary table does to the source's vocabulary, in numbers and examples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from fedfuse.alignment.vocabulary_map import VocabularyTable
from fedfuse.errors import FedfuseError
from fedfuse.tokenizers.token_bytes import VocabularyBytes
from fedfuse.tokenizers.tokenizer import TextTokenizer

# Distances 0, 1, 2, 3, and all from 4.
DISTANCES = 5


@dataclass(frozen=True, slots=True)
class TableStatistics:
    """What a vocabulary table does to the source's tokens.

    Attributes:
        source_vocab: ids of the source.
        target_vocab: ids of the target.
        tokens: source tokens that stand for text; what all counts but the specials are out of.
        by_distance: how many of them are at distance 0, 1, 2, 3, and 4 or more from their nearest.
        ties: how many have more than one target at the smallest distance.
        ambiguous: how many share their target with another one.
        specials: special tokens of the source.
        specials_mapped: how many of them become a special token of the target.
    """

    source_vocab: int
    target_vocab: int
    tokens: int
    by_distance: tuple[int, ...]
    ties: int
    ambiguous: int
    specials: int
    specials_mapped: int


@dataclass(frozen=True, slots=True)
class Example:
    """A source token and its nearest target: ids, bytes, distance."""

    source: int
    source_bytes: bytes
    target: int
    target_bytes: bytes
    distance: int


def table_statistics(
    source: TextTokenizer, target: TextTokenizer, table: VocabularyTable
) -> TableStatistics:
    """Count what ``table``, built with m >= 2, does to the source's vocabulary.

    Raises:
        FedfuseError: for a table with one target a token where there are more, which cannot tell a
            tie.
    """
    ours, theirs = source.vocabulary_bytes, target.vocabulary_bytes
    m, texts = table.target.shape[1], np.flatnonzero(_stands_for_text(theirs)).tolist()
    if m < 2 and len({theirs.bytes[i] for i in texts}) > 1:
        raise FedfuseError(f"table: expected at least 2 targets a token, to see ties, got {m}")
    text = _stands_for_text(ours)
    best, distance = table.best, table.distance[:, 0]
    second = min(1, m - 1)
    tied = (table.distance[:, second] == distance) & (table.target[:, second] != best)
    shared = np.bincount(best[text], minlength=target.vocab_size)[best] > 1
    counts = np.bincount(distance[text].clip(max=DISTANCES - 1), minlength=DISTANCES)
    return TableStatistics(
        source_vocab=source.vocab_size,
        target_vocab=target.vocab_size,
        tokens=int(text.sum()),
        by_distance=tuple(counts.tolist()),
        ties=int((tied & text).sum()),
        ambiguous=int((shared & text).sum()),
        specials=len(ours.special),
        specials_mapped=sum(int(best[token_id]) in theirs.special for token_id in ours.special),
    )


def table_examples(
    source: TextTokenizer, target: TextTokenizer, table: VocabularyTable, each: int = 8
) -> list[list[Example]]:
    """For each distance as in ``TableStatistics.by_distance`` some tokens, evenly spread by id.

    Returns:
        ``DISTANCES`` lists of at most ``each`` examples, ascending by id.
    """
    text = _stands_for_text(source.vocabulary_bytes)
    bucket = table.distance[:, 0].clip(max=DISTANCES - 1)
    result = []
    for distance in range(DISTANCES):
        ids = np.flatnonzero(text & (bucket == distance))
        places = np.linspace(0, len(ids) - 1, min(each, len(ids))).astype(np.int64)
        result.append([_example(source, target, table, i) for i in ids[places].tolist()])
    return result


def _example(
    source: TextTokenizer, target: TextTokenizer, table: VocabularyTable, token_id: int
) -> Example:
    nearest = int(table.best[token_id])
    return Example(
        token_id,
        source.token_bytes[token_id],
        nearest,
        target.token_bytes[nearest],
        int(table.distance[token_id, 0]),
    )


def _stands_for_text(own: VocabularyBytes) -> Bool[ndarray, " vocab"]:
    """By id, whether there is such a token and it stands for text."""
    return np.array(
        [bool(raw) and i in own.used and i not in own.special for i, raw in enumerate(own.bytes)]
    )

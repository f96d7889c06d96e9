"""The tokens of two tokenizers on the same texts, side by side, and how many find a partner.

A text is cut into blocks at every place where a token of both tokenizers ends. A block is the
smallest stretch of text that both tokenize on their own::

    source   The | _token ization | !
    target   The | _tok en iz ation | !
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray

from fedfuse.alignment.positions import Alignment, align_rows
from fedfuse.alignment.vocabulary_map import VocabularyTable
from fedfuse.tokenizers.label_rows import LabelRows
from fedfuse.tokenizers.token_ends import UNKNOWN
from fedfuse.tokenizers.tokenizer import TextTokenizer, TokenizedText

MATCHES = ("exact", "near", "none")


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a text.

    Attributes:
        id: in its own vocabulary.
        raw: its bytes.
        paired: whether its position has a partner among the other tokenizer's positions.
        nearest: of a source token, the bytes of its nearest target; None for a target token.
        distance: of a source token, the distance to that; None for a target token.
    """

    id: int
    raw: bytes
    paired: bool
    nearest: bytes | None = None
    distance: int | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """The tokens of both tokenizers on bytes ``start:stop`` of a text; one side may be empty.

    ``match`` is "exact" when one token meets one token of equal bytes, "near" when the table leads
    at least one of the source's tokens to one of the target's, else "none".
    """

    start: int
    stop: int
    source: tuple[Token, ...]
    target: tuple[Token, ...]
    match: str


@dataclass(frozen=True, slots=True)
class TextAlignment:
    """The first blocks of a text, and how many there are in all."""

    text: str
    blocks: tuple[Block, ...]
    total: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of some texts' tokens finds a partner.

    Attributes:
        source_tokens: positions of the source.
        target_tokens: positions of the target.
        with_source: target positions that have a source position.
        used: source positions that serve at least one target position.
        exact: source tokens whose nearest target is at distance 0.
    """

    source_tokens: int
    target_tokens: int
    with_source: int
    used: int
    exact: int


def align_texts(
    source: TextTokenizer,
    target: TextTokenizer,
    table: VocabularyTable,
    texts: Sequence[str],
    *,
    mode: str = "exact-boundary",
    limit: int = 2000,
) -> tuple[Coverage, list[TextAlignment]]:
    """Tokenize texts twice and lay the tokens side by side.

    Args:
        source: the tokenizer whose tokens are mapped.
        target: the tokenizer that they are mapped to.
        table: source to target vocabulary.
        texts: N texts; coverage is over all of them.
        positions: how positions are paired, see ``align_rows``.
        limit: blocks that are made out in all; the others are counted only.

    Returns:
        Coverage, and N alignments in the order of the texts.

    Raises:
        FedfuseError: for unknown ``mode``, or a text that a tokenizer cannot represent.
    """
    ours, theirs = source.encode(texts), target.encode(texts)
    our_rows, their_rows = text_rows(ours), text_rows(theirs)
    pairs = align_rows(
        our_rows, their_rows, mode, source.vocabulary_bytes, target.vocabulary_bytes, table
    )
    used = _used_rows(pairs, len(our_rows.token))
    served = pairs.source_row >= 0
    coverage = Coverage(
        source_tokens=len(used),
        target_tokens=len(served),
        with_source=int(served.sum()),
        used=int(used.sum()),
        exact=int((table.distance[our_rows.token, 0] == 0).sum()),
    )
    alignments = []
    for i, text in enumerate(texts):
        one = _Side(source, ours[i], _by_token(ours[i], our_rows, i, used))
        other = _Side(target, theirs[i], _by_token(theirs[i], their_rows, i, served))
        alignments.append(_align(text, one, other, table, limit))
        limit -= len(alignments[-1].blocks)
    return coverage, alignments


def text_rows(texts: Sequence[TokenizedText]) -> LabelRows:
    """Label rows of whole texts, without a prompt: every token that ends behind the first byte.

    As ``label_rows``, but for tokenizers that have no token to begin with, and without a limit.
    """
    fields = []
    for text in texts:
        row = np.flatnonzero(_known_ends(text) > 0)
        byte_start = np.concatenate([[0], text.ends])[row]
        fields.append(np.stack([text.ids[row], row, byte_start, text.ends[row]]))
    empty = np.empty((4, 0), dtype=np.int64)
    token, row, byte_start, byte_end = np.concatenate([empty, *fields], axis=1)
    counts = [part.shape[1] for part in fields]
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    begin = np.zeros(len(texts), dtype=np.int64)
    return LabelRows(offsets, token, row, byte_start, byte_end, begin)


def _known_ends(text: TokenizedText) -> Int64[ndarray, " n"]:
    """Ends, where an unknown one lies inside a character and becomes that character's."""
    known = np.where(text.ends == UNKNOWN, np.iinfo(np.int64).max, text.ends)
    ends: Int64[ndarray, " n"] = np.minimum.accumulate(known[::-1])[::-1]
    return ends


def _used_rows(pairs: Alignment, rows: int) -> Bool[ndarray, " source_rows"]:
    """Which source rows serve a target row; those of several source tokens follow the first."""
    served = pairs.source_row >= 0
    first, num_tokens = pairs.source_row[served], pairs.num_source_tokens[served]
    change = np.bincount(first, minlength=rows + 1) - np.bincount(
        np.minimum(first + num_tokens, rows), minlength=rows + 1
    )
    return np.asarray(change.cumsum()[:rows] > 0)


def _by_token(
    text: TokenizedText, rows: LabelRows, sample: int, of_row: Bool[ndarray, " rows"]
) -> Bool[ndarray, " n"]:
    """A property of rows as one of a text's tokens; False for tokens that have no row."""
    own = slice(int(rows.offsets[sample]), int(rows.offsets[sample + 1]))
    result = np.zeros(len(text.ids), dtype=np.bool_)
    result[rows.row[own]] = of_row[own]
    return result


@dataclass(frozen=True, slots=True)
class _Side:
    """A text under one tokenizer, and which of its tokens have a partner."""

    tokenizer: TextTokenizer
    text: TokenizedText
    paired: Bool[ndarray, " n"]


def _align(
    text: str, source: _Side, target: _Side, table: VocabularyTable, limit: int
) -> TextAlignment:
    """Cut a text where tokens of both sides end, and fill the first ``limit`` blocks."""
    size = len(text.encode())
    cuts = np.intersect1d(source.text.ends, target.text.ends)
    # What a tokenizer puts in front of the text belongs to the first block, and what it drops at
    # the end to the last.
    cuts = np.union1d(cuts[cuts > 0], [size])
    starts = np.concatenate([[0], cuts[:-1]])
    ours, theirs = _first_of_block(source.text, cuts), _first_of_block(target.text, cuts)
    blocks = []
    for i in range(min(limit, len(cuts))):
        above = _source_tokens(source, target.tokenizer, table, range(*ours[i : i + 2]))
        below = _tokens(target, range(*theirs[i : i + 2]))
        match = _match(above, below, table)
        blocks.append(Block(int(starts[i]), int(cuts[i]), above, below, match))
    return TextAlignment(text, tuple(blocks), len(cuts))


def _first_of_block(text: TokenizedText, cuts: Int64[ndarray, " blocks"]) -> list[int]:
    """The first token of every block, and the number of tokens."""
    block = np.searchsorted(cuts, np.minimum(_known_ends(text), cuts[-1]))
    first: list[int] = np.searchsorted(block, np.arange(len(cuts) + 1)).tolist()
    return first


def _source_tokens(
    side: _Side, target: TextTokenizer, table: VocabularyTable, places: range
) -> tuple[Token, ...]:
    tokens = []
    for token in _tokens(side, places):
        nearest = target.token_bytes[int(table.best[token.id])]
        distance = int(table.distance[token.id, 0])
        tokens.append(replace(token, nearest=nearest, distance=distance))
    return tuple(tokens)


def _tokens(side: _Side, places: range) -> tuple[Token, ...]:
    ids = side.text.ids[places.start : places.stop].tolist()
    return tuple(
        Token(token_id, side.tokenizer.token_bytes[token_id], bool(side.paired[place]))
        for token_id, place in zip(ids, places, strict=True)
    )


def _match(source: Sequence[Token], target: Sequence[Token], table: VocabularyTable) -> str:
    """One of ``MATCHES``, as ``Block`` defines it."""
    there = {token.id for token in target}
    led = [token for token in source if int(table.best[token.id]) in there]
    if led and len(source) == len(target) == 1 and led[0].distance == 0:
        return "exact"
    return "near" if led else "none"

"""How the target spells every source token: what lets tokens of different lengths teach each other.

A source token without an equal in the target's vocabulary is a sequence of target tokens. Its mass
belongs to the first of them, and after that one has been read, to the second. The other way round,
several source tokens that follow each other may be one target token; whether they are is found by
comparing digests of bytes, so that no bytes are put together for millions of candidates.

Not in the papers, which map every token to the single nearest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64, UInt64
from numpy import ndarray

from fedfuse.alignment.vocabulary_map import VocabularyTable, ids_of_texts
from fedfuse.tokenizers.tokenizer import TextTokenizer

NO_TOKEN = -1
# Pieces kept of a token: 16 letters where the target has only letters.
_LONGEST = 16
# A digest is a polynomial of the bytes in this odd number, modulo 2^64.
_BASE = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_INVERSE = pow(_BASE, -1, 1 << 64)
_SPACE = ord(" ") + 1
# The digest of no bytes at all, which no token for text has.
_NOTHING = np.uint64(0)
# Stands in front of a token while it is spelled, so that it is not at the beginning of a text.
_FRONT = "\n"


@dataclass(frozen=True, slots=True)
class Spelling:
    """Source tokens in terms of target tokens.

    Attributes:
        pieces: ``[V_source, 16]`` target ids that together make up each source token; -1 after the
            last. One piece where the target has an equal token; the nearest token (MinED) where the
            target cannot spell the source's.
        digest: ``[V_source]`` digest of each source token's bytes.
        shift: ``[V_source]`` what a digest is multiplied by when the token's bytes follow it.
        target_digest: digests of the target's tokens for text, ascending.
        target_id: their ids.
        source_spaced: ``[V_source]`` bytes of each source token that begins with a space, else 0.
        target_spaced: ``[V_target]`` the same of the target's tokens.
    """

    pieces: Int32[ndarray, "source_vocab most"]
    digest: UInt64[ndarray, " source_vocab"]
    shift: UInt64[ndarray, " source_vocab"]
    target_digest: UInt64[ndarray, " texts"]
    target_id: Int64[ndarray, " texts"]
    source_spaced: Int64[ndarray, " source_vocab"]
    target_spaced: Int64[ndarray, " target_vocab"]

    def with_space_shift(
        self, space_shift: Int64[ndarray, " *shape"], tokens: Int64[ndarray, " *shape"]
    ) -> UInt64[ndarray, " *shape"]:
        """Digests of source tokens with a space put in front where ``space_shift`` is 1, without
        the space that they begin with where it is -1; no token's digest if there is none.
        """
        own, shift = self.digest[tokens], self.shift[tokens]
        with_space = np.uint64(_SPACE) * shift + own
        # The first byte counts as many powers of the base as bytes follow it.
        without = own - np.uint64(_SPACE) * (shift * np.uint64(_INVERSE))
        without = np.where(self.source_spaced[tokens] > 0, without, _NOTHING)
        digest: UInt64[ndarray, " *shape"]
        digest = np.where(space_shift > 0, with_space, np.where(space_shift < 0, without, own))
        return digest

    def joined(
        self, front: UInt64[ndarray, " *shape"], tokens: Int64[ndarray, " *shape"]
    ) -> UInt64[ndarray, " *shape"]:
        """Digests of bytes with digests ``front``, followed by source tokens."""
        digest: UInt64[ndarray, " *shape"] = front * self.shift[tokens] + self.digest[tokens]
        return digest

    def token_of(self, digest: UInt64[ndarray, " *shape"]) -> Int64[ndarray, " *shape"]:
        """The target token of these bytes; -1 for none."""
        at = np.searchsorted(self.target_digest, digest)
        at = np.minimum(at, len(self.target_digest) - 1)
        return np.where(self.target_digest[at] == digest, self.target_id[at], NO_TOKEN)


def spell(source: TextTokenizer, target: TextTokenizer, table: VocabularyTable) -> Spelling:
    """How ``target`` spells the tokens of ``source``.

    Args:
        source: V_source tokens.
        target: the tokenizer to spell with.
        table: source to target; what has distance 0 there, or cannot be spelled, is taken from it.
    """
    shapes, id_of = source.vocabulary_bytes, ids_of_texts(target.vocabulary_bytes)
    pieces = np.full((source.vocab_size, _LONGEST), NO_TOKEN, dtype=np.int32)
    pieces[:, 0] = table.best
    wanted = np.flatnonzero(table.distance[:, 0] > 0).tolist()
    tokens = [i for i in wanted if i in shapes.used and i not in shapes.special and shapes.bytes[i]]
    for token_id, spelled in zip(
        tokens, _spell([shapes.bytes[i] for i in tokens], target, id_of), strict=True
    ):
        pieces[token_id, : len(spelled[:_LONGEST])] = spelled[:_LONGEST]
    digest = np.array([_digest(text) for text in shapes.bytes], dtype=np.uint64)
    shift = np.array([pow(_BASE, len(t), 1 << 64) for t in shapes.bytes], dtype=np.uint64)
    target_digest = np.array([_digest(text) for text in id_of], dtype=np.uint64)
    order = np.argsort(target_digest)
    target_id = np.fromiter(id_of.values(), dtype=np.int64)
    return Spelling(
        pieces=pieces,
        digest=digest,
        shift=shift,
        target_digest=target_digest[order],
        target_id=target_id[order],
        source_spaced=_spaced(shapes.bytes),
        target_spaced=_spaced(target.token_bytes),
    )


def _spaced(texts: Sequence[bytes]) -> Int64[ndarray, " vocab"]:
    return np.array([len(text) if text[:1] == b" " else 0 for text in texts], dtype=np.int64)


def spelled_table(table: VocabularyTable, spelling: Spelling) -> VocabularyTable:
    """``table``, with a token that has no equal going to the first token of its spelling.

    The distances stay those of the nearest token.
    """
    return VocabularyTable(spelling.pieces[:, :1].astype(np.int64), table.distance[:, :1])


def _digest(text: bytes) -> int:
    value = 0
    for byte in text:
        value = (value * _BASE + byte + 1) & _MASK
    return value


def _spell(
    texts: Sequence[bytes], target: TextTokenizer, id_of: dict[bytes, int]
) -> list[Sequence[int]]:
    """Target ids of every text: as the target tokenizes it; by the longest tokens if it does not.

    Empty where the target has no tokens for it.
    """
    whole = [text.decode(errors="replace") for text in texts]
    longest = max(map(len, id_of))
    result: list[Sequence[int]] = []
    for text, said, encoded in zip(
        texts, whole, target.encode([_FRONT + said for said in whole]), strict=True
    ):
        inside = np.flatnonzero(encoded.ends > len(_FRONT))
        ids = encoded.ids[inside[0] :].tolist() if len(inside) else []
        first = target.token_bytes[ids[0]] if ids else b""
        clean = bool(ids) and (inside[0] == 0 or encoded.ends[inside[0] - 1] == len(_FRONT))
        clean &= said.encode() == text and first[:1].isspace() == text[:1].isspace()
        result.append(ids if clean else _by_longest(text, id_of, longest))
    return result


def _by_longest(text: bytes, id_of: dict[bytes, int], longest: int) -> list[int]:
    """Greedily the longest token that the rest begins with; empty if there is none somewhere."""
    ids: list[int] = []
    at = 0
    while at < len(text):
        for end in range(min(len(text), at + longest), at, -1):
            if text[at:end] in id_of:
                break
        else:
            return []
        ids.append(id_of[text[at:end]])
        at = end
    return ids

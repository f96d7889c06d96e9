"""How one tokenizer spells the tokens of another.

A token whose bytes are no token on the other side is a sequence of the other side's tokens, its
spelling. It is used only where its pieces' bytes are exactly the token's: a tokenizer that changes
the text (lower case, accents away, unknown tokens) has no spelling for what it changes.

Not in the papers, which map every token to the single nearest one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, Int64
from numpy import ndarray

from fedfuse.alignment.vocabulary_map import ids_of_texts
from fedfuse.errors import FedfuseError
from fedfuse.tokenizers.token_bytes import VocabularyBytes
from fedfuse.tokenizers.tokenizer import TextTokenizer

NO_TOKEN = -1
# Pieces kept of a token: 16 letters where the other side has only letters.
LONGEST = 16
# What stands in front of a token while it is spelled, so that it is not at the beginning of a text:
# a newline or, for a token with whitespace in front, which a newline may merge with, a letter.
_FRONTS = ("\n", "a")
# Where tokens do not say whether a space was dropped before them, the letter tells: a comma follows
# it without a space or with one, letters go on with its word. The second is for those that merge
# with the first.
_FRONTS_WITHOUT_SPACES = ("a", "q")
# Letters of dead scripts, which a vocabulary without bytes does not have.
_RARE = "\U00010380\U00010000\U00010a60"


def spellings(
    source: TextTokenizer, target: TextTokenizer, space_shift: int = 0
) -> Int32[ndarray, "source_vocab longest"]:
    """Spell every token of ``source`` in tokens of ``target``.

    A special token is spelled by the special token of the same role. An unknown token may stand for
    anything: it has no spelling and is none.

    Args:
        source: V_source tokens.
        target: the tokenizer that spells.
        space_shift: 0 spells a token as it is, 1 with a space put in front, -1 without the space
            that it begins with (a token that begins with none has no spelling then).

    Returns:
        ``[V_source, 16]`` target ids that together are the source token, -1 after the last; all -1
        where the target has no spelling. Longer spellings are cut off.
    """
    own, id_of = source.vocabulary_bytes, ids_of_texts(target.vocabulary_bytes)
    pieces = np.full((source.vocab_size, LONGEST), NO_TOKEN, dtype=np.int32)
    text_of = {i: _shifted(own.bytes[i], space_shift) for i in sorted(own.used - own.special)}
    text_of = {i: text for i, text in text_of.items() if text}
    spelled = _spell(list(text_of.values()), target, id_of)
    for token_id, ids in zip(text_of, spelled, strict=True):
        pieces[token_id, : len(ids[:LONGEST])] = ids[:LONGEST]
    counterparts = _ids_of_roles(target)
    for role, token_id in _ids_of_roles(source).items():
        pieces[token_id, 0] = counterparts.get(role, NO_TOKEN)
    return pieces


def _ids_of_roles(tokenizer: TextTokenizer) -> dict[str, int]:
    """Special tokens by the one role that they are predicted in: an end, where they can be one.

    An unknown token has none, even if it is the end token too: it may stand for a text. (Only where
    every text has tokens, as with GPT-2, it never does.)
    """
    roles = tokenizer.vocabulary_bytes.roles
    main = {i: "eos" if "eos" in names else names[0] for i, names in roles.items()}
    rare = {i for ids in _encode(tokenizer, [_RARE]) for i in ids or ()}
    unknown = {i for i, names in roles.items() if "unk" in names and i in rare}
    return {role: i for i, role in main.items() if role != "unk" and i not in unknown}


def spaced(vocabulary: VocabularyBytes) -> Int64[ndarray, "2 vocab"]:
    """Bytes of tokens that begin with a space, where the text may lack it; 0 for others.

    Returns:
        ``[2, V]`` at the beginning of a text, and inside, where a token that begins with a letter
        lacks it only if all do that come there. A comma always may.
    """
    size = np.array([len(b) if b[:1] == b" " else 0 for b in vocabulary.bytes], dtype=np.int64)
    word = [b.decode(errors="replace")[1:2].isalnum() for b in vocabulary.bytes]
    return np.stack([size, np.where(word, size, 0)])


def _shifted(text: bytes, space_shift: int) -> bytes:
    if space_shift > 0:
        return b" " + text if text else b""
    if space_shift < 0:
        return text[1:] if text[:1] == b" " else b""
    return text


def _spell(
    texts: Sequence[bytes], target: TextTokenizer, id_of: dict[bytes, int]
) -> list[Sequence[int]]:
    """Target ids of every text: as the target tokenizes it or, where the result is not exactly the
    text, by the longest tokens; empty where it has no tokens for it.
    """
    own, special, drops = target.token_bytes, target.vocabulary_bytes.special, target.drops_spaces
    result: list[Sequence[int]] = [()] * len(texts)
    left = list(range(len(texts)))
    whole = [text.decode(errors="replace") for text in texts]
    for front in _FRONTS_WITHOUT_SPACES if drops else _FRONTS:
        before, *encoded = _encode(target, [front, *(front + whole[i] for i in left)])
        dirty = []
        for i, ids in zip(left, encoded, strict=True):
            inside = [] if before is None or ids is None else ids[len(before) :]
            found, text = b"".join([own[piece] for piece in inside]), texts[i]
            exact = found == text or (drops and _squeezed(found) == _squeezed(text))
            if exact and special.isdisjoint(inside):
                result[i] = inside
            else:
                dirty.append(i)
        left = [i for i in dirty if drops or texts[i][:1].isspace()]
    return [ids or _by_longest(text, id_of) for ids, text in zip(result, texts, strict=True)]


def _encode(tokenizer: TextTokenizer, texts: Sequence[str]) -> list[list[int] | None]:
    """Ids of each text; None where the tokenizer, which has no unknown token, cannot write it."""
    try:
        return list(tokenizer.encode_ids(texts))
    except FedfuseError:
        if len(texts) == 1:
            return [None]
    half = len(texts) // 2
    return _encode(tokenizer, texts[:half]) + _encode(tokenizer, texts[half:])


def _squeezed(text: bytes) -> bytes:
    return b"".join(text.split())


def _by_longest(text: bytes, id_of: dict[bytes, int]) -> list[int]:
    """Greedily the longest token that the rest begins with; empty if there is none somewhere."""
    ids: list[int] = []
    at = 0
    while at < len(text):
        for end in range(len(text), at, -1):
            if text[at:end] in id_of:
                break
        else:
            return []
        ids.append(id_of[text[at:end]])
        at = end
    return ids

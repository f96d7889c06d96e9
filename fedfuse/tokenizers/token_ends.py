"""Where every token of a text ends, in bytes of the original text.

Two ways. If the tokens' bytes put together are the text (perhaps behind the one space that
SentencePiece puts in front), ends are running sums of lengths: exact, also inside a character. If
the normalizer changed the text, the tokenizer's character offsets are used, and the bytes only
where tokens share a character.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

UNKNOWN = -1

_SPACES = np.array([code for code in range(0x3001) if chr(code).isspace()], dtype=np.uint32)


def token_ends(
    text: str, pieces: Sequence[bytes], offsets: Callable[[], Sequence[tuple[int, int]]]
) -> Int64[ndarray, " n"]:
    """UTF-8 bytes of ``text`` that tokens 0..i cover, for each of n tokens.

    Whitespace between two words belongs to the second. Non-decreasing where known; ``UNKNOWN`` only
    inside a character that the normalizer replaced and that is split over several tokens.

    Args:
        text: what was tokenized.
        pieces: bytes of the n tokens.
        offsets: gives each token's first character in the text, and the first one behind it. The
            Rust library copies them on every access, so they are read only where the pieces are
            not the text.
    """
    raw = text.encode()
    joined = b"".join(pieces)
    if joined == raw or joined == b" " + raw:
        lengths = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))
        ends: Int64[ndarray, " n"] = lengths.cumsum() - (len(joined) - len(raw))
        return ends
    return _from_offsets(text, raw, pieces, offsets())


def _from_offsets(
    text: str, raw: bytes, pieces: Sequence[bytes], offsets: Sequence[tuple[int, int]]
) -> Int64[ndarray, " n"]:
    """Ends by character offsets; tokens that share a character are told apart by their bytes."""
    spans = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    byte_at = _byte_positions(codes)
    start = spans[:, 0]
    stop = np.maximum.accumulate(spans[:, 1])
    ends: Int64[ndarray, " n"] = byte_at[_over_dropped(codes, start, stop)]
    joined = b"".join(pieces)
    after = np.cumsum([len(piece) for piece in pieces])
    shared = np.append((start[1:] < stop[:-1]) | (stop[1:] == stop[:-1]), False)
    for i in np.flatnonzero(shared)[::-1]:
        if pieces[i] == b" " and start[i + 1] <= start[i]:
            ends[i] = byte_at[start[i]]  # a space put in front of the text, which covers none of it
            continue
        # Tokens i and i+1 share the character before stop[i]: step back by the bytes of token i+1.
        # What was dropped behind token i+1 is none of its bytes.
        end = int(ends[i + 1] if shared[i + 1] else byte_at[stop[i + 1]])
        # The space of a last piece (``</w>``) is not in the middle of the word.
        piece = pieces[i + 1].removeprefix(b" ")
        back = end - len(piece)
        character = byte_at[max(stop[i] - 1, 0)]
        # Both sides of the cut must be the text's own bytes: one side may be equal by chance where
        # a letter and its accent became one character.
        known = end != UNKNOWN and character <= back and raw[back:end] == piece
        own = known and joined[: after[i]].endswith(raw[character:back])
        ends[i] = back if own else UNKNOWN
    return ends


def _byte_positions(codes: ndarray) -> Int64[ndarray, " chars_plus_1"]:
    """Byte position of every character and of the end of the text."""
    widths = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
    positions: Int64[ndarray, " chars_plus_1"] = np.concatenate([[0], widths.cumsum()])
    return positions


def _over_dropped(
    codes: ndarray, start: Int64[ndarray, " n"], stop: Int64[ndarray, " n"]
) -> Int64[ndarray, " n"]:
    """Move ends past characters that the normalizer dropped, up to the next token or whitespace.

    ``e`` + combining accent made one character, or the accent stripped: the token covers both.
    """
    limit = np.append(np.maximum(start[1:], stop[:-1]), len(codes))
    is_space = np.isin(np.append(codes, ord(" ")), _SPACES)
    moved = stop.copy()
    for i in np.flatnonzero((limit > stop) & ~is_space[stop]):
        gap = is_space[stop[i] : limit[i]]
        moved[i] = stop[i] + gap.argmax() if gap.any() else limit[i]
    return moved

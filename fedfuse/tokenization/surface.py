"""The bytes that every token stands for, in one convention for all kinds of tokenizer.

FedMKT (arXiv 2406.02224), Section 3.2 and Appendix B compare tokens of different tokenizers by
their text. Everything is read from the tokenizer's own settings, never from the name of a class.
The convention: a token that begins a word starts with ``b" "``. So byte-level BPE's remapped bytes
become real ones, the SentencePiece marker becomes a space, ``<0xNN>`` becomes a byte, and
WordPiece's ``##`` goes while its other tokens gain a space, but for the punctuation that its own
decoder joins to the word before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedfuse.errors import FedfuseError

if TYPE_CHECKING:
    from fedfuse.tokenization.tokenizer import TextTokenizer

# The field below is called ``bytes`` as well; an alias keeps the two apart.
TokenBytes = bytes

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CHILDREN = ("normalizers", "pretokenizers", "decoders")
# What the WordPiece decoder with its setting ``cleanup`` writes without the space in front.
_CLEANED_UP = frozenset(".,?!")


@dataclass(frozen=True, slots=True)
class Surfaces:
    """What the tokens of one vocabulary stand for.

    Attributes:
        bytes: by id, the token's bytes; ``b""`` for an id that no token has.
        roles: by id, the roles of a special token ("bos", "eos", ...); only ids that have one.
        special: ids that never stand for text: with a role, or marked special by the tokenizer.
        fallback: ids of SentencePiece's byte tokens ``<0xNN>``, used only for bytes that no other
            token has; so where two tokens have equal bytes, the other one is the one in use.
        used: ids that a token has.
    """

    bytes: list[TokenBytes]
    roles: dict[int, tuple[str, ...]]
    special: frozenset[int]
    fallback: frozenset[int]
    used: frozenset[int]


def surfaces(tokenizer: TextTokenizer) -> Surfaces:
    """The surface of every token of ``tokenizer``."""
    roles: dict[int, tuple[str, ...]] = {}
    for role, token_id in tokenizer.special_ids.items():
        roles[token_id] = (*roles.get(token_id, ()), role)
    return Surfaces(
        bytes=tokenizer.token_bytes,
        roles=roles,
        special=frozenset(roles) | tokenizer.marked_special,
        fallback=frozenset(i for t, i in tokenizer.vocabulary.items() if _BYTE_TOKEN.fullmatch(t)),
        used=frozenset(tokenizer.vocabulary.values()),
    )


def token_bytes(spec: Mapping[str, Any], vocabulary: Mapping[str, int], size: int) -> list[bytes]:
    """Bytes of every token, by id.

    Args:
        spec: the parsed ``tokenizer.json``.
        vocabulary: token to id, added tokens included.
        size: length of the result, above every id.

    Raises:
        FedfuseError: when the model's type is none of BPE, Unigram and WordPiece.
    """
    added = {token["id"]: token for token in spec.get("added_tokens") or []}
    convert, convert_added = _converters(spec)
    result = [b""] * size
    for token, token_id in sorted(vocabulary.items()):
        if token_id not in added:
            result[token_id] = convert(token)
        elif added[token_id].get("special"):
            result[token_id] = token.encode()
        else:
            result[token_id] = convert_added(token)
    return result


def _converters(
    spec: Mapping[str, Any],
) -> tuple[Callable[[str], bytes], Callable[[str], bytes]]:
    """Token to bytes, for the model's tokens and for added ones (which byte-level never remaps)."""
    model = spec["model"]
    kind = model.get("type")
    components = (spec.get(key) for key in ("normalizer", "pre_tokenizer", "decoder"))
    parts = [part for component in components for part in _parts(component)]
    if kind == "WordPiece":
        prefix = model["continuing_subword_prefix"]
        cleanup = any(part["type"] == "WordPiece" and part["cleanup"] for part in parts)
        joined = _CLEANED_UP if cleanup else frozenset[str]()
        return (lambda token: _word_piece(token, prefix, joined),) * 2
    if kind not in ("BPE", "Unigram"):
        raise FedfuseError(f"tokenizer model type is {kind!r}; allowed: BPE, Unigram, WordPiece")
    if any(part["type"] == "ByteLevel" for part in parts):
        return _byte_level, str.encode
    marker = _space_marker(parts)
    fallback = bool(model.get("byte_fallback")) or any(p["type"] == "ByteFallback" for p in parts)
    suffix = model.get("end_of_word_suffix") or ""
    return (lambda token: _sentence_piece(token.removesuffix(suffix), marker, fallback),) * 2


def _parts(component: Any) -> Iterator[Mapping[str, Any]]:
    """The component, or the components of a sequence, at any depth."""
    if component is None:
        return
    if component["type"] != "Sequence":
        yield component
        return
    for key in _CHILDREN:
        for child in component.get(key) or []:
            yield from _parts(child)


def _space_marker(parts: list[Mapping[str, Any]]) -> str:
    """The character that stands for a space; a space itself when there is none."""
    for part in parts:
        if part["type"] == "Metaspace":
            return str(part["replacement"])
        if part["type"] == "Replace":
            pattern, content = part["pattern"].get("String"), part["content"]
            if pattern == " " and content:
                return str(content)  # a normalizer, before the model
            if pattern and content == " ":
                return str(pattern)  # a decoder, after it
    return " "


def _word_piece(token: str, prefix: str, joined: frozenset[str]) -> bytes:
    if prefix and token.startswith(prefix) and token != prefix:
        return token[len(prefix) :].encode()
    return token.encode() if token in joined else b" " + token.encode()


def _sentence_piece(token: str, marker: str, fallback: bool) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token) if fallback else None
    return bytes([int(match[1], 16)]) if match else token.replace(marker, " ").encode()


def _byte_level(token: str) -> bytes:
    if all(char in _BYTE_OF for char in token):
        return bytes([_BYTE_OF[char] for char in token])
    return token.encode()  # not an image of bytes: a token written by hand


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters to bytes: printable bytes are themselves, the others move up from 256."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(moved)}


_BYTE_OF = _byte_alphabet()

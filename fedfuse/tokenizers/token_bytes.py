"""The bytes that every token stands for, in one convention for all kinds of tokenizer.

FedMKT (arXiv 2406.02224), Section 3.2 and Appendix B compare tokens of different tokenizers by
their text. The convention: a token that begins a word starts with ``b" "``. How a token is brought
into this form is in ``pieces``; it is read from the tokenizer's own settings, never from the name
of a class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedfuse.errors import FedfuseError
from fedfuse.tokenizers.token_decoder import BYTE_TOKEN, TokenDecoder

# The field below is called ``bytes`` as well; an alias keeps the two apart.
TokenBytes = bytes

_MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")


@dataclass(frozen=True, slots=True)
class VocabularyBytes:
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


def token_bytes(spec: Mapping[str, Any], vocabulary: Mapping[str, int], size: int) -> list[bytes]:
    """Bytes of every token, by id.

    Args:
        spec: the parsed ``tokenizer.json``.
        vocabulary: token to id, added tokens included.
        size: length of the result, above every id.

    Raises:
        FedfuseError: when the model's type is none of BPE, Unigram, WordLevel and WordPiece.
    """
    kind = spec["model"].get("type")
    if kind not in _MODELS:
        raise FedfuseError(f"tokenizer model type: expected {', '.join(_MODELS)}, got {kind!r}")
    added = {token["id"]: token for token in spec.get("added_tokens") or []}
    own = _model_tokens(spec["model"])
    pieces = TokenDecoder(spec)
    result = [b""] * size
    for token, token_id in sorted(vocabulary.items()):
        settings = added.get(token_id)
        if settings is None:
            result[token_id] = pieces.of_model(token)
        elif settings.get("special"):
            result[token_id] = token.encode()
        else:
            result[token_id] = pieces.of_added(token, settings, in_model=token in own)
    return result


def _model_tokens(model: Mapping[str, Any]) -> frozenset[str]:
    """The tokens of the model itself; a unigram model has them in pairs with their scores."""
    vocab = model.get("vocab") or ()
    return frozenset(vocab if isinstance(vocab, Mapping) else (token for token, _ in vocab))


def byte_fallback_ids(vocabulary: Mapping[str, int], token_bytes: Sequence[bytes]) -> Iterator[int]:
    """Ids of the tokens ``<0xNN>``, where the tokenizer reads them as bytes: not all do."""
    for token, token_id in vocabulary.items():
        match = BYTE_TOKEN.fullmatch(token)
        if match and token_bytes[token_id] == bytes([int(match[1], 16)]):
            yield token_id

"""A tokenizer as the federation knows it: from its own serialized form, by the Rust library alone.

Text is the interchange between models, so any party must be able to load any other's tokenizer:
from JSON, without remote code and without a class of its own. A token's end in bytes of the text is
what makes tokenizers comparable.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray
from tokenizers import Encoding, Tokenizer

from fedfuse.errors import FedfuseError, check
from fedfuse.tokenizers.chat import ChatFormat, find_format
from fedfuse.tokenizers.pre_tokenization import pre_tokenization
from fedfuse.tokenizers.token_bytes import VocabularyBytes, byte_fallback_ids, token_bytes
from fedfuse.tokenizers.token_ends import token_ends
from fedfuse.tokenizers.unspellable import special_names, spelled, unmarked, unspellable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = "fedfuse-tokenizer-1"
ROLES = ("bos", "eos", "pad", "unk", "cls", "sep", "mask")
# What may begin a model's input, the first that exists.
_BEGINNINGS = ("bos", "cls", "eos", "pad")
# What transformers 5 offers for a tokenizer in Python. Its ``convert_slow_tokenizer`` goes by the
# name of the class and knows only those that are fast already, so the message names a converter.
_CONVERSION = (
    "To make one, take the converter of its family from transformers.convert_slow_tokenizer "
    "(SLOW_TO_FAST_CONVERTERS lists them), such as "
    'BertConverter(tokenizer).converted().save("tokenizer.json"), '
    "compare a few texts under both, and load the file with "
    'PreTrainedTokenizerFast(tokenizer_file="tokenizer.json") and its special tokens'
)
# The largest vocabularies in use have about 2^18 tokens; an id far above would only eat memory.
_MAX_ID = 1 << 22


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """One text as n plain tokens, without special tokens.

    Attributes:
        ids: ``[n]`` token ids.
        ends: ``[n]`` UTF-8 bytes of the text that tokens 0..i cover. Whitespace between words
            belongs to the second word. Exact inside a character that is split over several tokens;
            -1 only where the normalizer replaced such a character.
    """

    ids: Int64[ndarray, " n"]
    ends: Int64[ndarray, " n"]


class TextTokenizer:
    """A fast tokenizer with its special tokens, identified by its content."""

    def __init__(
        self,
        spec: Mapping[str, Any],
        specials: Mapping[str, object],
        chat: ChatFormat | None = None,
    ) -> None:
        """Build from a parsed ``tokenizer.json``, special tokens by role and the format of chats;
        see ``from_json``.
        """
        self.chat = chat
        # Settings of a caller that would change what a text's tokens are.
        self._spec: dict[str, Any] = {**spec, "truncation": None, "padding": None}
        model = spec.get("model")
        if isinstance(model, dict) and model.get("dropout") is not None:
            self._spec["model"] = {**model, "dropout": None}
        with _rust_errors("tokenizer JSON cannot be loaded"):
            # A post-processor adds special tokens, which ``encode`` never asks for; and may trim
            # the whitespace off the offsets, which ends of tokens need.
            plain = {**self._spec, "post_processor": None}
            text = _dumps(plain)
            self._rust = Tokenizer.from_str(_dumps(unspellable(plain)))
            # A text that spells a special token is text, so data cannot end a sequence.
            self._rust.encode_special_tokens = True
            vocabulary = self._rust.get_vocab(with_added_tokens=True)
        self.vocabulary = {spelled(token): number for token, number in vocabulary.items()}
        self._digest = hashlib.sha256(text.encode()).hexdigest()
        largest = max(self.vocabulary.values(), default=-1)
        if not 0 <= largest < _MAX_ID:
            raise FedfuseError(f"tokenizer's largest id: expected 0..{_MAX_ID - 1}, got {largest}")
        self.vocab_size: int = largest + 1
        self._specials = _checked_specials(specials, self._spec["model"], self.vocabulary)

    @classmethod
    def from_json(cls, text: str, specials: Mapping[str, str] | None = None) -> TextTokenizer:
        """Load from text: a ``tokenizer.json``, or what ``to_json`` wrote.

        Args:
            text: the JSON.
            specials: role to token, as in ``tokenizer_config.json``, replacing any that ``text``
                carries. Roles: bos, eos, pad, unk, cls, sep, mask. unk defaults to the model's own.

        Raises:
            FedfuseError: when the text is no tokenizer, or lacks one of its special tokens.
        """
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FedfuseError(f"tokenizer JSON cannot be parsed: {error}") from error
        carried: object = {}
        chat: object = None
        if isinstance(parsed, dict) and "format" in parsed:
            found = parsed["format"]
            check("tokenizer format", repr(found), repr(FORMAT), found == FORMAT)
            carried, chat = parsed.get("specials"), parsed.get("chat")
            parsed = parsed.get("tokenizer")
        if not isinstance(parsed, dict):
            found = type(parsed).__name__
            raise FedfuseError(f"tokenizer JSON: expected an object, got a {found}")
        given = carried if specials is None else specials
        if not isinstance(given, Mapping):
            raise FedfuseError(f"tokenizer specials: expected role -> token, got {given!r}")
        loaded = cls(parsed, given)
        if chat is not None:
            loaded.chat = ChatFormat.from_wire(chat, loaded.special_names)
        return loaded

    @classmethod
    def from_pretrained(cls, tokenizer: PreTrainedTokenizerBase) -> TextTokenizer:
        """Take over a transformers tokenizer, with its special tokens.

        Raises:
            FedfuseError: when it has no fast form; names it and says how to make one.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            name = getattr(tokenizer, "name_or_path", "") or "unnamed"
            raise FedfuseError(
                f"tokenizer {name!r} ({type(tokenizer).__name__}) has no fast form: "
                f"expected a tokenizer with a tokenizer.json. {_CONVERSION}"
            )
        named = {role: getattr(tokenizer, f"{role}_token", None) for role in ROLES}
        specials = {role: str(token) for role, token in named.items() if token is not None}
        loaded = cls.from_json(backend.to_str(), specials)
        loaded.use_chat_template(getattr(tokenizer, "chat_template", None))
        return loaded

    def use_chat_template(self, template: object) -> None:
        """Write chats by a model's template, see ``find_format``; None for a model without one."""
        names = {f"{role}_token": token for role, token in self._specials.items()}
        self.chat = find_format(template, names, self.special_names)

    def to_json(self) -> str:
        """Canonical JSON of tokenizer and special tokens: equal text for equal content."""
        content = {"format": FORMAT, "specials": self._specials, "tokenizer": self._spec}
        return _dumps(content | self._chat_on_the_wire)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex): equal for tokenizers with equal ``to_json()``.

        Of digests: writing the JSON of a large vocabulary once more takes a tenth of a second.
        """
        rest = {"specials": self._specials, "post_processor": self._spec.get("post_processor")}
        rest |= self._chat_on_the_wire
        content = _dumps({"format": FORMAT, "digest": self._digest, **rest})
        return hashlib.sha256(content.encode()).hexdigest()

    def within(self, rows: int) -> TextTokenizer:
        """Without the special tokens for which a model with so many embeddings has none.

        Such as the image token of a text model that was cut out of a larger one. A text that spells
        it is text, as for all special tokens.
        """
        added = self._spec.get("added_tokens") or []
        ids = self.vocabulary  # which may differ from those in the file
        kept = [t for t in added if ids[t["content"]] < rows or not t.get("special")]
        gone = {token["content"] for token in added} - {token["content"] for token in kept}
        if not gone:
            return self
        specials = {role: token for role, token in self._specials.items() if token not in gone}
        return TextTokenizer({**self._spec, "added_tokens": kept}, specials, self.chat)

    @property
    def special_ids(self) -> dict[str, int]:
        """Role to id, for the roles that this tokenizer has, in the order of ``ROLES``."""
        return {r: self.vocabulary[self._specials[r]] for r in ROLES if r in self._specials}

    @property
    def bos_id(self) -> int:
        """What begins a model's input: the bos token, else cls, else eos, else pad.

        Raises:
            FedfuseError: when the tokenizer has none of them.
        """
        ids = self.special_ids
        for role in _BEGINNINGS:
            if role in ids:
                return ids[role]
        raise FedfuseError(
            f"tokenizer's special tokens are {self._specials}; "
            f"at least one must be there of: {', '.join(_BEGINNINGS)}"
        )

    @property
    def special_names(self) -> frozenset[str]:
        """Special tokens that no text can spell."""
        return special_names(self._spec)

    @property
    def _chat_on_the_wire(self) -> dict[str, dict[str, str]]:
        return {"chat": self.chat.to_wire()} if self.chat else {}

    @cached_property
    def marked_special(self) -> frozenset[int]:
        """Ids of the added tokens that the tokenizer itself marks special."""
        added = self._spec.get("added_tokens") or []
        return frozenset(int(token["id"]) for token in added if token.get("special"))

    @cached_property
    def drops_spaces(self) -> bool:
        """Whether spaces between words are dropped, so that no token says if there was one."""
        with _rust_errors("tokenizer's normalizer and pre-tokenizer cannot be used"):
            return pre_tokenization(self._spec).dropped

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """By id, the bytes that a token stands for; ``b""`` for an id that no token has."""
        with _rust_errors("tokens cannot be read as bytes"):
            return token_bytes(self._spec, self.vocabulary, self.vocab_size)

    @cached_property
    def vocabulary_bytes(self) -> VocabularyBytes:
        """The bytes of all tokens, and which tokens are special, byte fallbacks or unused."""
        roles: dict[int, tuple[str, ...]] = {}
        for role, token_id in self.special_ids.items():
            roles[token_id] = (*roles.get(token_id, ()), role)
        return VocabularyBytes(
            bytes=self.token_bytes,
            roles=roles,
            special=frozenset(roles) | self.marked_special,
            fallback=frozenset(byte_fallback_ids(self.vocabulary, self.token_bytes)),
            used=frozenset(self.vocabulary.values()),
        )

    def encode(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Tokenize; no special tokens, no truncation, no padding.

        Raises:
            FedfuseError: when the tokenizer cannot represent a text.
        """
        texts = [unmarked(text) for text in texts]
        token_bytes = self.token_bytes
        with _rust_errors("text cannot be tokenized"):
            encodings = self._rust.encode_batch(texts, add_special_tokens=False)
        result = []
        for text, encoding in zip(texts, encodings, strict=True):
            ids = encoding.ids
            ends = token_ends(
                text, [token_bytes[i] for i in ids], partial(getattr, encoding, "offsets")
            )
            result.append(TokenizedText(np.array(ids, dtype=np.int64), ends))
        return result

    def encode_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids alone, several times faster than ``encode``.

        Raises:
            FedfuseError: when the tokenizer cannot represent a text.
        """
        with _rust_errors("text cannot be tokenized"):
            encodings = self._rust.encode_batch_fast(
                [unmarked(text) for text in texts], add_special_tokens=False
            )
        return [encoding.ids for encoding in encodings]

    def encode_marked(self, texts: Sequence[str]) -> list[Encoding]:
        """Tokenize texts in which special tokens have the mark of ``unspellable``.

        Raises:
            FedfuseError: when the tokenizer cannot represent a text.
        """
        with _rust_errors("text cannot be tokenized"):
            return self._with_specials.encode_batch(list(texts), add_special_tokens=False)

    @cached_property
    def _with_specials(self) -> Tokenizer:
        made = Tokenizer.from_str(self._rust.to_str())
        made.encode_special_tokens = False
        return made

    def decode(self, ids: Sequence[int]) -> str:
        """The text of plain tokens; special tokens leave nothing."""
        with _rust_errors("tokens cannot be decoded"):
            return str(self._rust.decode(list(ids), skip_special_tokens=True))

    @cached_property
    def special_prefix_suffix(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Special tokens that the tokenizer's own post-processor puts before and after a text."""
        with _rust_errors("tokenizer's post-processor cannot be used"):
            whole = Tokenizer.from_str(_dumps(self._spec)).encode("a")
        ids, special = whole.ids, whole.special_tokens_mask
        before = special.index(0) if 0 in special else len(ids)
        after = len(ids) - special[::-1].index(0) if 0 in special else len(ids)
        return tuple(ids[:before]), tuple(ids[after:])


def _checked_specials(
    specials: Mapping[str, object], model: Mapping[str, Any], vocabulary: Mapping[str, int]
) -> dict[str, str]:
    """Special tokens by role, sorted by role, with the model's own unk where none is given."""
    wanted = dict(specials)
    own: str | None = model.get("unk_token")
    if model.get("type") == "Unigram" and model.get("unk_id") is not None:
        own = model["vocab"][model["unk_id"]][0]
    if own is not None and own in vocabulary:
        wanted.setdefault("unk", own)
    result: dict[str, str] = {}
    for role, token in sorted(wanted.items()):
        if role not in ROLES:
            raise FedfuseError(f"special token role: expected {', '.join(ROLES)}, got {role!r}")
        if not isinstance(token, str) or token not in vocabulary:
            raise FedfuseError(f"special token {role}: expected a token that exists, got {token!r}")
        result[role] = token
    return result


def _dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


@contextmanager
def _rust_errors(what: str) -> Iterator[None]:
    """Turn errors of the Rust library, which raises plain ``Exception`` and panics, into ours."""
    try:
        yield
    except Exception as error:
        raise FedfuseError(f"{what}: {error}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise FedfuseError(f"{what}: {error}") from error

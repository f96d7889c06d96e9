"""From one token of a vocabulary to the bytes that it stands for.

Byte-level BPE's remapped bytes become real ones, the SentencePiece marker becomes a space and
``<0xNN>`` a byte. Where the pre-tokenizer drops the space between words, it comes back with the
tokens that show that they begin a word:

* every token of a word-level model;
* without the prefix of continuing pieces (``##``), where there is one;
* with the suffix of last pieces (``</w>``), where there is no such prefix. This is a choice:
  ``ing</w>`` ends a word that it need not begin. But most tokens with the suffix are whole words,
  which are to be found by the other tokenizers' whole words.

Tokens that show nothing stand for themselves. So do those that the tokenizer cuts off where no
space is (single digits, CJK characters, the letters of a character model), and the punctuation that
the WordPiece decoder joins to the word before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fedfuse.tokenizers.pre_tokenization import components, pre_tokenization

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# What the WordPiece decoder with its setting ``cleanup`` writes without the space in front.
_CLEANED_UP = frozenset(".,?!")
# Bytes that no UTF-8 text has. Byte-level alphabets write them as letters: DeepSeek-Coder's added
# tokens for umlauts look like such bytes, and are found where the text has the letter.
_NEVER_IN_TEXT = frozenset([0xC0, 0xC1, *range(0xF5, 0x100)])


class TokenDecoder:
    """The tokens of one tokenizer, read by its own settings."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        """Read a parsed ``tokenizer.json``."""
        model = spec["model"]
        normalizer, pre_tokenizer, decoder = (
            list(components(spec.get(key))) for key in ("normalizer", "pre_tokenizer", "decoder")
        )
        self._pre_tokenization = pre_tokenization(spec)
        self._every_word = model["type"] == "WordLevel"
        self._prefix: str = model.get("continuing_subword_prefix") or ""
        self._suffix: str = model.get("end_of_word_suffix") or ""
        self._byte_level = _has("ByteLevel", [*normalizer, *pre_tokenizer, *decoder])
        self._byte_level_text = _has("ByteLevel", normalizer)
        two_words = self._pre_tokenization.normalize("ab cd")
        self._spaces_stay = " " in two_words
        self._marked = self._pre_tokenization.marker in two_words
        self._fallback = bool(model.get("byte_fallback")) or _has("ByteFallback", decoder)
        cleanup = any(part["type"] == "WordPiece" and part["cleanup"] for part in decoder)
        self._joined = _CLEANED_UP if cleanup else frozenset[str]()

    def of_model(self, token: str) -> bytes:
        """Bytes of a token of the model."""
        text = token
        if self._continues(token):
            text = text[len(self._prefix) :]
        if self._ends(token):
            text = text.removesuffix(self._suffix)
        value = _from_byte_level(text) if self._byte_level else self._literal(text)
        known = self._every_word or self._prefix or self._ends(token)
        begins = known and not self._continues(token) and self._after_space(token)
        return b" " + value if begins else value

    def of_added(self, token: str, settings: Mapping[str, Any], *, in_model: bool) -> bytes:
        """Bytes of an added token, which is found in the text before the model sees it.

        Args:
            token: its content.
            settings: its entry in ``added_tokens``.
            in_model: the model has the same token, so it can come from there as well.
        """
        of_model = self.of_model(token) if in_model else b""
        if in_model and not _NEVER_IN_TEXT.intersection(of_model):
            value = of_model
        else:
            # A normalized one is looked for in the normalized text, in its own normalized form.
            read = self._pre_tokenization.normalize(token) if settings.get("normalized") else ""
            value = self._in_normalized(read) if read else token.encode()
            known = self._every_word or self._prefix or self._suffix
            if known and self._after_space(read or token):
                value = b" " + value
        if settings.get("normalized") and not self._spaces_stay:
            return value  # there is no whitespace to strip where it is found
        if settings.get("lstrip") and not value.startswith(b" "):
            value = b" " + value
        if (
            settings.get("rstrip")
            and not self._pre_tokenization.dropped
            and not value.endswith(b" ")
        ):
            value += b" "
        return value

    def _in_normalized(self, text: str) -> bytes:
        """Bytes of normalized text; a marker that only the pre-tokenizer writes is none there."""
        if self._byte_level_text:
            return _from_byte_level(text)
        return (text.replace(self._pre_tokenization.marker, " ") if self._marked else text).encode()

    def _continues(self, token: str) -> bool:
        return bool(self._prefix) and token.startswith(self._prefix) and token != self._prefix

    def _ends(self, token: str) -> bool:
        return bool(self._suffix) and token.endswith(self._suffix) and token != self._suffix

    def _after_space(self, token: str) -> bool:
        """Whether a piece that begins with this token comes after a space that was dropped."""
        first = token[:1]
        alone = first.isalnum() and self._pre_tokenization.cut(first * 2)
        return self._pre_tokenization.dropped and not alone and token not in self._joined

    def _literal(self, text: str) -> bytes:
        match = BYTE_TOKEN.fullmatch(text) if self._fallback else None
        if match:
            return bytes([int(match[1], 16)])
        return text.replace(self._pre_tokenization.marker, " ").encode()


def _has(kind: str, components: list[Mapping[str, Any]]) -> bool:
    return any(part["type"] == kind for part in components)


def _from_byte_level(token: str) -> bytes:
    if all(char in _BYTE_OF for char in token):
        return bytes([_BYTE_OF[char] for char in token])
    return token.encode()  # not an image of bytes: a token written by hand


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters to bytes: printable bytes are themselves, the others move up from 256."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(moved)}


_BYTE_OF = _byte_alphabet()

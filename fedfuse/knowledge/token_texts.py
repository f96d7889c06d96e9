"""How services write single tokens, and whether that is what a tokenizer says of them."""

from __future__ import annotations

from functools import lru_cache

from fedfuse.tokenizers.tokenizer import TextTokenizer

_LOST = "\N{REPLACEMENT CHARACTER}"  # a part of a character, which cannot be written
# Marks of a space or a line's end in the names of tokens.
_MARKS = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n"})


class TokenTexts:
    """Tokens of one tokenizer as text.

    Services write a token as its text, as its name in the vocabulary, with or without a space in
    front, so spaces at the ends are not compared.

    Args:
        tokenizer: of the model that the service is believed to serve.

    Attributes:
        vocab_size: tokens of the tokenizer.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size
        self._names = {number: name for name, number in tokenizer.vocabulary.items()}
        self._of = lru_cache(maxsize=None)(self._forms)
        self._ids: dict[str, int] | None = None

    def text(self, token_id: int) -> str:
        """Text of a token, special tokens by name."""
        if token_id in self._tokenizer.vocabulary_bytes.special:
            return self._names[token_id]
        return self._tokenizer.token_bytes[token_id].decode(errors="ignore")

    def _forms(self, token_id: int) -> frozenset[str]:
        written = self._tokenizer.token_bytes[token_id].decode(errors="replace")
        forms = {written, self._names[token_id], self._tokenizer.decode([token_id])}
        return frozenset(form.translate(_MARKS).strip() for form in forms)

    def agrees(self, token_id: int, text: str | None) -> bool:
        """Whether a service's text of a token can be that token of this tokenizer.

        A part of a character is no text that could be compared.
        """
        bare = (text or "").translate(_MARKS).strip()
        if token_id not in self._names:
            return not bare  # padding of an output head
        forms = self._of(token_id)
        return text is None or bare in forms or any(_LOST in form for form in (*forms, bare))

    def id_of(self, text: str) -> int | None:
        """The token with exactly this text; None where none or several plain tokens have it."""
        if self._ids is None:
            plain = self._tokenizer.vocabulary_bytes
            ids: dict[str, int] = {}
            several = set()
            for number in sorted(plain.used - plain.special - plain.fallback):
                written = self.text(number)
                if written in ids:
                    several.add(written)
                ids[written] = number
            self._ids = {text: number for text, number in ids.items() if text not in several}
        return self._ids.get(text)

"""Tokens as services write them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fedfuse.knowledge.token_texts import TokenTexts
from tests.conftest import Tiny


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox"])
def test_a_token_agrees_with_its_own_text_in_every_form(
    tiny: Callable[[str], Tiny], kind: str
) -> None:
    tokenizer = tiny(kind).tokenizer
    texts = TokenTexts(tokenizer)
    for name, number in tokenizer.vocabulary.items():
        for written in (name, texts.text(number), tokenizer.decode([number]) or name, None):
            assert texts.agrees(number, written), (name, written)
        found = texts.id_of(texts.text(number))
        assert found in (None, number) or number in tokenizer.vocabulary_bytes.fallback


def test_other_text_does_not_agree(tiny: Callable[[str], Tiny]) -> None:
    tokenizer = tiny("gpt2").tokenizer
    texts = TokenTexts(tokenizer)
    *_, other, first = sorted(tokenizer.vocabulary, key=len)
    for written in (other, "", f"{first}s", texts.text(tokenizer.vocabulary[other])):
        assert not texts.agrees(tokenizer.vocabulary[first], written), written
    assert texts.agrees(tokenizer.vocab_size + 3, None)  # padding of an output head
    assert not texts.agrees(tokenizer.vocab_size + 3, "zinc")


def test_texts_of_several_tokens_are_nobodys(tiny: Callable[[str], Tiny]) -> None:
    tokenizer = tiny("gpt2").tokenizer
    texts = TokenTexts(tokenizer)
    parts = [n for n, b in enumerate(tokenizer.token_bytes) if b[:1] >= b"\x80" and len(b) == 1]
    assert {texts.id_of(texts.text(number)) for number in parts} == {None}
    assert texts.id_of("no token has this text") is None

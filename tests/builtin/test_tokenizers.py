"""Tokenizers of every kind: sizes, special tokens, and texts that come back."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from fedfuse.builtin.tokenizers import KINDS, SPECIALS, train_tokenizer
from fedfuse.tokenizers.tokenizer import TextTokenizer

SENTENCE = "in may the dover archive filed copper under amber crimson."


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, language: list[str]) -> PreTrainedTokenizerFast:
    return train_tokenizer(request.param, 500, language)


def test_special_tokens_come_first(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.convert_tokens_to_ids(list(SPECIALS)) == [0, 1, 2, 3]
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert (*ids, tokenizer.unk_token_id) == (0, 1, 2, 3)
    plain = TextTokenizer.from_pretrained(tokenizer)
    assert plain.special_ids == {"bos": 0, "eos": 1, "pad": 2, "unk": 3}
    assert plain.bos_id == 0


def test_the_size_is_bounded_and_used(tokenizer: PreTrainedTokenizerFast) -> None:
    assert 350 < len(tokenizer) <= 500
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


def test_texts_come_back(tokenizer: PreTrainedTokenizerFast, language: list[str]) -> None:
    for text in [SENTENCE, *language[:50]]:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert not set(ids) & {0, 1, 2, 3}
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False).replace(" .", ".") == text
        (plain,) = TextTokenizer.from_pretrained(tokenizer).encode([text])
        assert plain.ids.tolist() == ids
        assert plain.ends[-1] == len(text)


def test_frequent_words_are_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    """Four times as many tokens as bytes would make tiny models' sequences long."""
    tokens = tokenizer.tokenize(SENTENCE)
    assert len(tokens) <= 26
    assert any("archive" in token for token in tokens)


def test_kinds_disagree(language: list[str]) -> None:
    """Or there would be nothing to translate."""
    cuts = set()
    for kind in KINDS:
        trained = TextTokenizer.from_pretrained(train_tokenizer(kind, 500, language))
        cuts.add(tuple(trained.encode([SENTENCE])[0].ends.tolist()))
    assert len(cuts) == 3


def test_training_is_reproducible(language: list[str]) -> None:
    for kind in KINDS:
        trained = [
            TextTokenizer.from_pretrained(train_tokenizer(kind, 700, language)) for _ in range(3)
        ]
        assert len({tokenizer.fingerprint for tokenizer in trained}) == 1

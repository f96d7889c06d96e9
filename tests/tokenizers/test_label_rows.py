"""Label rows, and the convention that row t predicts token t+1."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError
from fedfuse.tokenizers.label_rows import label_rows
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.tokenizer_kinds import KINDS, by_hand, texts_strategy

WORDS = ["[UNK]", "[CLS]", "the", "cat", "##s", "sat"]
LETTERS = ["<s>", "t", "h", "e", "Ġ", "c", "a", "s", "ð", "Ł", "ĺ", "Ģ"]


def test_rows_by_hand() -> None:
    """Row 0 reads [CLS] and predicts "the"; row 1 reads "the" and predicts "cat"; and so on."""
    tokenizer = by_hand("wordpiece", WORDS, cls="[CLS]")
    samples = [Sample("the", " cats sat"), Sample("", "sat")]
    inputs, rows = label_rows(tokenizer, samples, 10)
    assert [ids.tolist() for ids in inputs] == [[1, 2, 3, 4, 5], [1, 5]]
    assert rows.offsets.tolist() == [0, 3, 4]
    assert rows.token.tolist() == [3, 4, 5, 5]
    assert rows.row.tolist() == [1, 2, 3, 0]
    assert rows.byte_start.tolist() == [3, 7, 8, 0]
    assert rows.byte_end.tolist() == [7, 8, 12, 3]
    assert rows.sample_of_row.tolist() == [0, 0, 0, 1]


def test_rows_by_hand_inside_a_character() -> None:
    tokenizer = by_hand("byte-level", LETTERS, bos="<s>")
    inputs, rows = label_rows(tokenizer, [Sample("the", " 😀")], 10)
    assert inputs[0].tolist() == [0, 1, 2, 3, 4, 8, 9, 10, 11]
    assert rows.token.tolist() == [4, 8, 9, 10, 11]
    assert rows.row.tolist() == [3, 4, 5, 6, 7]
    assert rows.byte_start.tolist() == [3, 4, 5, 6, 7]
    assert rows.byte_end.tolist() == [4, 5, 6, 7, 8]


def test_a_token_over_the_border_is_scored() -> None:
    """The prompt ends inside the word: its token covers answer bytes too."""
    tokenizer = by_hand("wordpiece", WORDS, cls="[CLS]")
    _, rows = label_rows(tokenizer, [Sample("the c", "ats sat")], 10)
    assert rows.token.tolist() == [3, 4, 5]
    assert rows.byte_start.tolist() == [3, 7, 8]


def test_a_space_put_in_front_is_not_scored(tokenizers: dict[str, TextTokenizer]) -> None:
    _, rows = label_rows(tokenizers["sentencepiece"], [Sample("", "zé")], 10)
    assert rows.row.tolist()[0] == 1
    assert rows.byte_start.tolist()[0] == 0


def test_rows_of_a_character_that_was_replaced() -> None:
    """An unknown end is inside a character, so on the character's side of the prompt."""
    tokenizer = by_hand("wordpiece", ["[UNK]", "ᄀ", "##ᅡ", "a"], pad="[UNK]")
    _, rows = label_rows(tokenizer, [Sample("가", " 가 a"), Sample("가가", "")], 20)
    assert rows.offsets.tolist() == [0, 3, 3]
    assert rows.row.tolist() == [2, 3, 4]
    assert rows.byte_start.tolist() == [3, -1, 7]
    assert rows.byte_end.tolist() == [-1, 7, 9]


def test_a_long_prompt_loses_its_beginning_and_no_answer_its_end() -> None:
    """What is left has room for one token more."""
    tokenizer = by_hand("wordpiece", WORDS, cls="[CLS]")
    samples = [Sample("the the cat sat", " cats sat"), Sample("the", "")]
    whole = label_rows(tokenizer, samples, 9)[1]
    for length, kept, begin in ((9, 4, 0), (8, 4, 0), (7, 2, 7), (6, 1, 11), (5, 0, 15)):
        inputs, rows = label_rows(tokenizer, samples, length)
        assert inputs[0].tolist() == [1, *[2, 2, 3, 5][4 - kept :], 3, 4, 5]
        assert rows.row.tolist() == [kept, kept + 1, kept + 2]
        assert rows.begin.tolist() == [begin, 0]
        for name in ("token", "byte_start", "byte_end", "offsets"):
            assert getattr(rows, name).tolist() == getattr(whole, name).tolist()


def test_rows_are_cut_with_their_tokens() -> None:
    tokenizer = by_hand("wordpiece", WORDS, cls="[CLS]")
    samples = [Sample("the", " cats sat")]
    inputs, rows = label_rows(tokenizer, samples, 3)
    assert inputs[0].tolist() == [1, 3, 4]
    assert rows.row.tolist() == [0, 1]
    assert rows.begin.tolist() == [3]
    with pytest.raises(FedfuseError, match="max_length: expected 2 or more, got 1"):
        label_rows(tokenizer, samples, 1)


def test_no_samples_and_empty_texts(tokenizers: dict[str, TextTokenizer]) -> None:
    inputs, rows = label_rows(tokenizers["unigram"], [], 8)
    assert inputs == []
    assert rows.offsets.tolist() == [0]
    assert rows.token.shape == (0,)
    inputs, rows = label_rows(tokenizers["unigram"], [Sample("", "")], 8)
    assert inputs[0].tolist() == [0]
    assert rows.offsets.tolist() == [0, 0]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50, deadline=None, derandomize=True)
@given(prompt=texts_strategy(8), answer=texts_strategy(12), length=st.integers(2, 20))
def test_row_t_predicts_token_t_plus_1(
    tokenizers: dict[str, TextTokenizer], kind: str, prompt: str, answer: str, length: int
) -> None:
    tokenizer = tokenizers[kind]
    sample = Sample(prompt, answer)
    (ids,), rows = label_rows(tokenizer, [sample], length)
    (text,) = tokenizer.encode([sample.text])
    uncut = label_rows(tokenizer, [sample], 1000)[1].row
    first = int(uncut[0]) if len(uncut) else 0
    cut = min(first, len(text.ids) - (length - 2)) if len(text.ids) >= length else 0
    assert ids.tolist() == [tokenizer.bos_id, *text.ids[cut:].tolist()][:length]
    assert rows.begin.tolist() == [text.ends[cut - 1] if cut else 0]
    # The convention: row t predicts position t+1 of the input, which is token t of what is left.
    assert ids[rows.row + 1].tolist() == rows.token.tolist()
    token = rows.row + cut
    assert text.ids[token].tolist() == rows.token.tolist()
    assert text.ends[token].tolist() == rows.byte_end.tolist()
    before = [0, *text.ends.tolist()]
    assert [before[row] for row in token] == rows.byte_start.tolist()
    # Scored are exactly the tokens that reach into the answer.
    for j, end in enumerate(text.ends[: cut + length - 1].tolist()):
        if end >= 0:
            assert (j in token) == (end > sample.prompt_bytes)

"""Alignment of label rows, both modes, both directions, and the row convention."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfuse.alignment.positions import align_rows, warping_path
from fedfuse.alignment.vocabulary_map import minimum_edit_distance_table
from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError
from fedfuse.tokenizers.label_rows import LabelRows, label_rows
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.oracles import boundary, dtw
from tests.tokenizer_kinds import KINDS, by_hand, texts_strategy

WORDS = ["[UNK]", "[CLS]", "the", "cat", "##s", "sat"]
LETTERS = ["<s>", "t", "h", "e", "Ġ", "c", "a", "s"]
SAMPLES = [Sample("the", " cats sat"), Sample("", "the cat")]
NOT_CUT = np.zeros(1, dtype=np.int64)


@pytest.fixture(scope="module")
def words() -> TextTokenizer:
    return by_hand("wordpiece", WORDS, cls="[CLS]")


@pytest.fixture(scope="module")
def letters() -> TextTokenizer:
    return by_hand("byte-level", LETTERS, bos="<s>")


def pairs_strategy() -> st.SearchStrategy[list[tuple[str, str]]]:
    """Prompts and answers; samples are made in the tests, since type checks draw random numbers."""
    return st.lists(st.tuples(texts_strategy(6), texts_strategy(12)), max_size=4)


def test_boundary_from_words_to_letters(words: TextTokenizer, letters: TextTokenizer) -> None:
    source = label_rows(words, SAMPLES, 50)[1]
    target = label_rows(letters, SAMPLES, 50)[1]
    assert source.byte_start.tolist() == [3, 7, 8, 0, 3]
    assert target.byte_start.tolist() == [3, 4, 5, 6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6]
    found = align_rows(source, target, "exact-boundary").source_row
    # What predicts "cat" after "the" teaches what predicts " " after "the", and so on.
    expected = [0, -1, -1, -1, 1, 2, -1, -1, -1, 3, -1, -1, 4, -1, -1, -1]
    assert found.tolist() == expected
    assert found.dtype == np.int64


def test_boundary_from_letters_to_words(words: TextTokenizer, letters: TextTokenizer) -> None:
    source = label_rows(letters, SAMPLES, 50)[1]
    target = label_rows(words, SAMPLES, 50)[1]
    assert align_rows(source, target).source_row.tolist() == [0, 4, 5, 9, 12]


@pytest.mark.parametrize("mode", ["exact-boundary", "dtw"])
@pytest.mark.parametrize("forth", [True, False])
def test_row_convention(
    words: TextTokenizer, letters: TextTokenizer, mode: str, forth: bool
) -> None:
    """Paired rows speak of tokens that begin at the same byte of the text.

    Were a row to speak of its own token instead of the next one, on one side or on both, then the
    bytes read so far would not end where the predicted token begins.
    """
    samples = [Sample("the", " cat sat the cats"), Sample("", "sat the cat")]
    pair = (words, letters) if forth else (letters, words)
    (source_ids, source), (target_ids, target) = (label_rows(t, samples, 50) for t in pair)
    shapes = [t.vocabulary_bytes for t in pair]
    table = minimum_edit_distance_table(*pair, None)
    found = align_rows(source, target, mode, *shapes, table).source_row
    pairs = [(t, s) for t, s in enumerate(found.tolist()) if s >= 0]
    if mode == "exact-boundary":
        assert len(pairs) == 8
    for t, s in pairs:
        sample = target.sample_of_row[t]
        assert source.sample_of_row[s] == sample
        raw = samples[sample].text.encode()
        for tokenizer, ids, rows, row in (
            (pair[0], source_ids, source, s),
            (pair[1], target_ids, target, t),
        ):
            read = ids[sample][: rows.row[row] + 1]  # tokens 0..row of the input
            following = ids[sample][rows.row[row] + 1]
            said = b"".join(tokenizer.token_bytes[i] for i in read[1:])
            assert said.strip() == raw[: rows.byte_start[row]].strip()
            assert following == rows.token[row]
        if mode == "exact-boundary":
            assert source.byte_start[s] == target.byte_start[t]
        else:
            assert table.best[source.token[s]] == target.token[t]


@pytest.mark.parametrize("shift", [-1, 1])
def test_mixed_conventions_are_noticed(
    words: TextTokenizer, letters: TextTokenizer, shift: int
) -> None:
    """Rows that speak of another token than the next one are paired with other places."""
    samples = [Sample("the", " cat sat the cats")]
    rows = label_rows(words, samples, 50)[1]
    target = label_rows(letters, samples, 50)[1]
    (text,) = words.encode([samples[0].text])
    before = np.concatenate([[0], text.ends])
    row = rows.row[1:-1]
    offsets, token = np.array([0, len(row)]), text.ids[row + shift]
    wrong = LabelRows(offsets, token, row, before[row + shift], text.ends[row + shift], NOT_CUT)
    right = LabelRows(offsets, text.ids[row], row, before[row], text.ends[row], NOT_CUT)
    for part, expected in ((right, True), (wrong, False)):
        found = align_rows(part, target).source_row
        matched = found >= 0
        assert matched.any()
        # What a model has read when its row ``row`` predicts, with BOS in front, is before[row].
        read = before[part.row[found[matched]]]
        assert (target.byte_start[matched] == read).tolist() == [expected] * matched.sum()


def test_boundary_of_runs_that_share_a_prefix() -> None:
    """A space put in front covers nothing; the row after it is the one that predicts the text."""
    one, two = np.array([0, 2]), np.array([0, 3])
    source = LabelRows(
        one, np.zeros(2, int), np.arange(2), np.array([0, 0]), np.array([0, 3]), NOT_CUT
    )
    target = LabelRows(
        two, np.zeros(3, int), np.arange(3), np.array([0, 0, 3]), np.array([0, 3, 4]), NOT_CUT
    )
    assert align_rows(source, target).source_row.tolist() == [-1, 1, -1]
    assert align_rows(target, source).source_row.tolist() == [-1, 1]


def test_unknown_prefixes_are_unmatched() -> None:
    rows = LabelRows(
        np.array([0, 3]),
        np.zeros(3, int),
        np.arange(3),
        np.array([0, -1, 3]),
        np.array([-1, 3, 6]),
        NOT_CUT,
    )
    assert align_rows(rows, rows).source_row.tolist() == [0, -1, 2]


@pytest.mark.parametrize(("one", "other"), list(product(KINDS, KINDS)))
@settings(max_examples=25, deadline=None, derandomize=True)
@given(pairs=pairs_strategy())
def test_boundary_equals_oracle(
    tokenizers: dict[str, TextTokenizer], one: str, other: str, pairs: list[tuple[str, str]]
) -> None:
    samples = [Sample(*pair) for pair in pairs]
    source = label_rows(tokenizers[one], samples, 16)[1]
    target = label_rows(tokenizers[other], samples, 16)[1]
    found = align_rows(source, target).source_row
    expected = boundary.matches(source, target, [sample.text for sample in samples])
    assert found.tolist() == expected
    # Ascending, and equal bytes before the predicted tokens.
    matched = found >= 0
    assert (np.diff(found[matched]) > 0).all()
    assert (source.byte_start[found[matched]] == target.byte_start[matched]).all()
    assert (source.sample_of_row[found[matched]] == target.sample_of_row[matched]).all()


def test_warping_by_hand() -> None:
    cost = np.array([[0, 2, 9], [2, 0, 9], [9, 3, 1], [9, 9, 0]])
    path = warping_path(cost)
    assert list(zip(*(side.tolist() for side in path), strict=True)) == [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 2),
    ]
    # Equal costs everywhere: the diagonal first.
    path = warping_path(np.ones((2, 3), dtype=np.int64))
    assert [side.tolist() for side in path] == [[0, 0, 1], [0, 1, 2]]


def test_dtw_by_hand(words: TextTokenizer) -> None:
    """Source: the|cat|s|sat. Target: the|cats|sat; " sat" has two rows, being nearer to "s"."""
    other = by_hand("wordpiece", ["[UNK]", "[CLS]", "the", "cats", "sat"], cls="[CLS]")
    samples = [Sample("", "the cats sat"), Sample("", ""), Sample("the", " sat")]
    source = label_rows(words, samples, 20)[1]
    target = label_rows(other, samples, 20)[1]
    shapes = words.vocabulary_bytes, other.vocabulary_bytes
    assert align_rows(source, target, "dtw", *shapes).source_row.tolist() == [0, 1, -1, 4]
    # The other way "s" and " sat" have the one row " sat" each; by the table it is not "s".
    back = align_rows(target, source, "dtw", *shapes[::-1])
    assert back.source_row.tolist() == [0, 1, 2, 2, 3]
    table = minimum_edit_distance_table(other, words, None)
    back = align_rows(target, source, "dtw", *shapes[::-1], table)
    assert back.source_row.tolist() == [0, 1, -1, 2, 3]


@pytest.mark.parametrize(("one", "other"), list(permutations(KINDS, 2)))
@settings(max_examples=10, deadline=None, derandomize=True)
@given(pairs=pairs_strategy())
def test_dtw_equals_oracle(
    tokenizers: dict[str, TextTokenizer], one: str, other: str, pairs: list[tuple[str, str]]
) -> None:
    samples = [Sample(*pair) for pair in pairs]
    tokenizers_ = tokenizers[one], tokenizers[other]
    source, target = (label_rows(t, samples, 10)[1] for t in tokenizers_)
    shapes = [t.vocabulary_bytes for t in tokenizers_]
    found = align_rows(source, target, "dtw", *shapes).source_row
    expected = []
    for i in range(len(samples)):
        s, t = (slice(r.offsets[i], r.offsets[i + 1]) for r in (source, target))
        texts = [
            [shape.bytes[token] for token in rows.token[part]]
            for shape, rows, part in zip(shapes, (source, target), (s, t), strict=True)
        ]
        expected += [m + int(source.offsets[i]) if m >= 0 else -1 for m in dtw.matches(*texts)]
    assert found.tolist() == expected


def test_refusals(words: TextTokenizer, letters: TextTokenizer) -> None:
    source = label_rows(words, SAMPLES, 50)[1]
    target = label_rows(letters, SAMPLES, 50)[1]
    with pytest.raises(FedfuseError, match="exact-boundary, dtw, got 'diagonal'"):
        align_rows(source, target, "diagonal")
    with pytest.raises(FedfuseError, match="needs the token bytes"):
        align_rows(source, target, "dtw", words.vocabulary_bytes)
    with pytest.raises(FedfuseError, match="2 samples of the source and 1 of the target"):
        align_rows(source, label_rows(letters, SAMPLES[:1], 50)[1])

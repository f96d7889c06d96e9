"""What a teacher expects is what the student would write there, spaces and all.

No table is asked: two answers to one prompt are tokenized by both sides. A teacher that sees the
one and also expects the token with which the other goes on must teach the student's token of the
other.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from fedfuse.data.sample import Sample
from fedfuse.tokenizers.label_rows import label_rows
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.alignment.test_event_rows import events_of, knowledge_of, project
from tests.tokenizer_kinds import SPECIALS

_CORPUS = [
    "the answer is yes, the cat said no. (yes) no; yes: no - yes",
    "12 cats and 3 dogs (no) don't sit; the cats do",
    "a\nthe answer: yes\nno cat",
    "well-known answer (yes) the",
] * 9


def _byte_level(prefix: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    return _trained(
        tokenizer, trainers.BpeTrainer, 330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )


def _metaspace(scheme: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return _trained(tokenizer, trainers.BpeTrainer, 100)


def _prepended() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    n = normalizers
    tokenizer.normalizer = n.Sequence([n.Prepend("▁"), n.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Replace("▁", " ")
    return _trained(tokenizer, trainers.BpeTrainer, 100)


def _word_pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _trained(tokenizer, trainers.WordPieceTrainer, 110)


def _words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return _trained(tokenizer, trainers.WordLevelTrainer, 100)


def _trained(tokenizer: Tokenizer, trainer: type, size: int, **settings: object) -> Tokenizer:
    special = list(SPECIALS.values())
    sized = {"vocab_size": size, "special_tokens": special, "show_progress": False}
    tokenizer.train_from_iterator(_CORPUS, trainer(**sized, **settings))
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": lambda: _byte_level(False),
    "byte-level with a space": lambda: _byte_level(True),
    "first marker": lambda: _metaspace("first"),
    "always a marker": lambda: _metaspace("always"),
    "never a marker": lambda: _metaspace("never"),
    "prepended marker": _prepended,
    "word pieces": _word_pieces,
    "words": _words,
}
# What may go on in a place; to tell, in one place, words behind a dropped space from words without
# one is beyond a tokenizer that drops it, but commas it can tell from both.
WORDS, SPACED = ("yes", "no", "the cat"), (" yes", " no", " the", " (")
PLACES = {
    "": WORDS,
    "the answer": (*SPACED, "; no", ": yes", "-yes", ") no"),
    "12 cats": (*SPACED, ",", ".", "'s", "- 3"),
    "answer:": SPACED,
    "answer: ": (*WORDS, "(yes", "12"),
    "a\n": WORDS,
    "the (": WORDS,
    "well-": ("known", *WORDS),
    "don": (*SPACED, "'t", ";"),
}
CASES = [(place, *pair) for place, answers in PLACES.items() for pair in permutations(answers, 2)]


@pytest.fixture(scope="module")
def made() -> dict[str, TextTokenizer]:
    return {
        name: TextTokenizer.from_json(make().to_str(), SPECIALS) for name, make in KINDS.items()
    }


@pytest.fixture(scope="module")
def expected(made: dict[str, TextTokenizer]) -> dict[str, list[int | None]]:
    """By kind and case the first token of the other answer; None where it is not the next one."""
    return {
        name: [_goes_on(tokenizer, *case) for case in CASES] for name, tokenizer in made.items()
    }


def _goes_on(tokenizer: TextTokenizer, place: str, answer: str, other: str) -> int | None:
    samples = [Sample(place, answer), Sample(place, other)]
    rows = label_rows(tokenizer, samples, 100)[1]
    mine, right = (e.ids.tolist() for e in tokenizer.encode([s.text for s in samples]))
    at = int(rows.row[0])
    same = at == rows.row[rows.offsets[1]] and mine[:at] == right[:at]
    known = same and mine[at] != right[at] and right[at] != tokenizer.special_ids["unk"]
    return right[at] if known else None


@pytest.mark.parametrize(("one", "other"), list(permutations(KINDS, 2)))
def test_what_a_teacher_expects_is_what_the_student_would_write(
    made: dict[str, TextTokenizer], expected: dict[str, list[int | None]], one: str, other: str
) -> None:
    source, target = made[one], made[other]
    both = zip(CASES, expected[one], expected[other], strict=True)
    cases = [(place, answer, a, b) for (place, answer, _), a, b in both if None not in (a, b)]
    samples = [Sample(place, answer) for place, answer, _, _ in cases]
    rows, own = (label_rows(t, samples, 100)[1] for t in (source, target))
    masses = [
        {token: 0.5, cases[i][2]: 0.3}
        for i, token in zip(rows.sample_of_row.tolist(), rows.token.tolist(), strict=True)
    ]
    found = project(source, target, samples, knowledge_of(rows, masses, 2))
    checked = 0
    for row, case in zip(own.offsets.tolist(), cases, strict=False):
        if found.weight[row]:
            checked += 1
            taught = sum(mass for event, mass in events_of(found, row).items() if case[3] in event)
            assert taught == pytest.approx(0.3), case
    assert checked > 60

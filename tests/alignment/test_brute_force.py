"""Events and the chain rule of random tokenizers, against an enumeration of all short texts.

The oracle tokenizes by itself and knows the teacher as probabilities of whole texts: no table, no
alignment, no product of conditional probabilities. ``FEDFUSE_EXAMPLES`` scales the number of pairs.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from fedfuse.alignment.event_table import event_table
from fedfuse.data.sample import Sample
from fedfuse.knowledge.record import Knowledge
from fedfuse.tokenizers.label_rows import label_rows
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.alignment.test_event_rows import events_of, knowledge_of, project
from tests.oracles.events import Event, joined

EXAMPLES = int(os.environ.get("FEDFUSE_EXAMPLES", "200"))
LONGEST = 6
TEXTS = ["".join(letters) for n in range(1, LONGEST + 1) for letters in product("ab", repeat=n)]
SPECIALS = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
END = "</s>"


@dataclass(frozen=True)
class Tiny:
    """A tokenizer, its tokens in order of their ids, and in plain Python how it cuts a text."""

    tokenizer: TextTokenizer
    names: list[str]
    cut: Callable[[str], list[str]]

    def ids(self, names: list[str]) -> list[int]:
        return [self.names.index(name) for name in names]


def greedy(tokens: list[str]) -> Tiny:
    """Always the longest token."""
    names = [*SPECIALS.values(), *tokens]
    vocabulary = {name: i for i, name in enumerate(names)}
    model = models.WordPiece(vocabulary, unk_token="<unk>", continuing_subword_prefix="")

    def cut(text: str) -> list[str]:
        if not text:
            return []
        first = max((token for token in tokens if text.startswith(token)), key=len, default="")
        rest = cut(text[len(first) :]) if first else ["<unk>"]
        return ["<unk>"] if "<unk>" in rest else [first, *rest]

    return Tiny(_loaded(model), names, cut)


def merging(pairs: list[tuple[int, int]]) -> Tiny:
    """Byte-pair encoding: always the earliest merge that can be made, from the left."""
    tokens, merges = [*"ab\n"], []
    for one, other in pairs:
        pair = tokens[one % len(tokens)], tokens[other % len(tokens)]
        if "\n" not in "".join(pair) and "".join(pair) not in tokens:
            tokens.append("".join(pair))
            merges.append(pair)
    names = [*SPECIALS.values(), *tokens]
    model = models.BPE({name: i for i, name in enumerate(names)}, merges, unk_token="<unk>")

    def cut(text: str) -> list[str]:
        parts = list(text)
        while True:
            able = [(merges.index(p), i) for i, p in enumerate(pairwise(parts)) if p in merges]
            if not able:
                return parts
            _, at = min(able)
            parts[at : at + 2] = ["".join(parts[at : at + 2])]

    return Tiny(_loaded(model), names, cut)


def _loaded(model: object) -> TextTokenizer:
    return TextTokenizer.from_json(Tokenizer(model).to_str(), SPECIALS)


def code(splits: list[int]) -> Tiny:
    """Tokens of which none begins another, so that what was read says where tokens end."""
    tokens = ["a", "b"]
    for split in splits:
        token = tokens.pop(split % len(tokens))
        tokens += [token + "a", token + "b"]
    return greedy(tokens)


longer = st.lists(st.text("ab", min_size=2, max_size=4), max_size=5, unique=True)
tinies = st.builds(lambda tokens: greedy([*"ab\n", *tokens]), longer) | st.builds(
    merging, st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=6)
)


@settings(max_examples=2 * EXAMPLES, deadline=None, derandomize=True)
@given(teacher=tinies, student=tinies)
def test_an_event_is_what_the_teacher_writes_beginning_so(teacher: Tiny, student: Tiny) -> None:
    for tiny in (teacher, student):
        for text in TEXTS[::17]:
            assert tiny.tokenizer.encode_ids([text])[0] == tiny.ids(tiny.cut(text))
    written = written_by(teacher, student)
    table = event_table(teacher.tokenizer, student.tokenizer)
    for read in {tuple(tokens[:n]) for tokens in written.values() for n in range(len(tokens))}:
        before = np.array(0)
        for depth, token in enumerate(teacher.ids(list(read))):
            start, stop = table.event(depth, before, np.array(token))
            before = np.where(stop > start, start, -1)
        tokens = np.arange(len(teacher.names))
        starts, stops = table.event(len(read), before, tokens)
        for name, start, stop in zip(teacher.names, starts, stops, strict=True):
            expected = beginning_with(written, [*read, name])
            assert set(table.order[start:stop].tolist()) == expected


def written_by(teacher: Tiny, student: Tiny) -> dict[int, list[str]]:
    """How the teacher writes each of the student's tokens."""
    special = [END, "<s>"]
    ordinary = [name for name in student.names if name not in SPECIALS.values()]
    written = {name: teacher.cut(name) for name in ordinary} | {name: [name] for name in special}
    return {student.names.index(name): tokens for name, tokens in written.items()}


def beginning_with(written: dict[int, list[str]], read: list[str]) -> Event:
    return frozenset(v for v, tokens in written.items() if tokens[: len(read)] == read)


@dataclass(frozen=True)
class Piece:
    """A token of a text and where it is."""

    name: str
    start: int
    stop: int


def pieces(tiny: Tiny, text: str) -> list[Piece]:
    names = tiny.cut(text)
    stops = np.cumsum([len(name) for name in names]).tolist()
    return [Piece(name, stop - len(name), stop) for name, stop in zip(names, stops, strict=True)]


class Told:
    """A teacher that knows a probability of every text, as its own tokens."""

    def __init__(self, teacher: Tiny, student: Tiny, texts: list[str], seed: int) -> None:
        self.teacher, self.student, self.written = teacher, student, written_by(teacher, student)
        mass = np.random.default_rng(seed).exponential(size=len(texts)) ** 3
        self.said = [([*teacher.cut(t), END], float(p)) for t, p in zip(texts, mass, strict=True)]

    def going_on(self, read: list[str]) -> list[tuple[list[str], float]]:
        """What follows some tokens, and its probability given them."""
        n = len(read)
        follows = [(tokens[n:], p) for tokens, p in self.said if tokens[:n] == read]
        total = sum(p for _, p in follows)
        return [(tokens, p / total) for tokens, p in follows]

    def knowledge(self, sample: Sample) -> Knowledge:
        """Its next tokens at every label row, all of them."""
        rows = label_rows(self.teacher.tokenizer, [sample], 100)[1]
        own, said = self.teacher.cut(sample.text), []
        for row in rows.row.tolist():
            next_token: dict[int, float] = defaultdict(float)
            for tokens, p in self.going_on(own[:row]):
                next_token[self.teacher.names.index(tokens[0])] += p
            said.append(dict(next_token))
        return knowledge_of(rows, said, 60)

    def events_at(self, label: Piece, text: str, prompt: int) -> list[tuple[Event, float]]:
        """What is taught at the student's token: what each text of the teacher's makes likely."""
        own = pieces(self.teacher, text)
        rows = [piece for piece in own if piece.stop > prompt]
        before = [piece.name for piece in own if piece.stop <= label.start]
        following = [piece for piece in rows if label.start <= piece.start]
        if following and following[0].start == label.start:
            along = [piece for piece in following if piece.start < label.stop]
            if len(along) > 1 and along[-1].stop != label.stop:
                return []
            names = [piece.name for piece in along]
            return [
                (self.along(tokens, names, label.name), p) for tokens, p in self.going_on(before)
            ]
        around = [p for p in rows if p.start < label.start and label.stop <= p.stop]
        read = [p for p in pieces(self.student, text) if p.stop > prompt and p.stop <= label.start]
        starts = [piece.start for piece in read]
        if not around or around[0].start not in starts:
            return []
        inside = [p.name for p in read[starts.index(around[0].start) :]]
        found = [
            (self.inside(tokens[0], around[0].name, inside, label.name), p)
            for tokens, p in self.going_on(before)
        ]
        possible = sum(p for event, p in found if event is not None)
        return [(event, p / possible) for event, p in found if event]

    def along(self, tokens: list[str], names: list[str], label: str) -> Event:
        """The event of a text that has these tokens here, where the label is those names."""
        same = next((i for i, name in enumerate(names) if tokens[i] != name), len(names))
        event = beginning_with(self.written, tokens[: same + 1])
        if same == len(names):
            event, at = beginning_with(self.written, names), self.student.names.index(label)
            return event if at in event else frozenset([at])
        if not event and same == 0:
            return frozenset(self.student.ids(self.student.cut(tokens[0])[:1]))
        return event or self.ending("".join(names[:same]), tokens[same])

    def ending(self, read: str, token: str) -> Event:
        """The event of what was read as a token, if none goes on with the first letter."""
        first = "" if token == END else token[:1]
        longer = {name for name in self.student.names if name.startswith(read + first)} - {read}
        if read not in self.student.names or (first and longer):
            return frozenset()
        return frozenset(self.student.ids([read]))

    def inside(self, token: str, own: str, read: list[str], label: str) -> Event | None:
        """The event of a token where the student has read part of one; None if it cannot be."""
        if token == own:
            return frozenset(self.student.ids([label]))
        cut = [END] if token == END else self.student.cut(token)
        if cut[: len(read)] != read:
            return None
        return frozenset(self.student.ids(cut[len(read) : len(read) + 1]))


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(teacher=tinies, student=longer.map(lambda tokens: greedy([*"ab\n", *tokens])))
def test_what_is_said_to_end_is_what_the_student_writes(teacher: Tiny, student: Tiny) -> None:
    told, ended = Told(teacher, student, TEXTS[:30], 0), 0
    for text in TEXTS:
        tokens = [*teacher.cut(text), END]
        for n in range(1, len(tokens)):
            if event := told.ending("".join(tokens[:n]), tokens[n]):
                ended += 1
                assert event == frozenset(student.ids(student.cut(text)[:1]))
    assert ended


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(
    teacher=tinies,
    student=tinies,
    text=st.sampled_from(TEXTS[14:]),
    prompt=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_rows_are_sums_over_all_texts(
    teacher: Tiny, student: Tiny, text: str, prompt: int, seed: int
) -> None:
    sample, told = Sample(text[:prompt], text[prompt:]), Told(teacher, student, TEXTS, seed)
    found = project(teacher.tokenizer, student.tokenizer, [sample], told.knowledge(sample))
    rows = [piece for piece in pieces(student, text) if piece.stop > prompt]
    assert found.num_rows == len(rows)
    for row, piece in enumerate(rows):
        expected = dict(joined(told.events_at(piece, text, prompt)))
        assert bool(found.weight[row]) == bool(expected)
        if expected:
            assert events_of(found, row) == pytest.approx(expected, abs=1e-6)
            tail = math.exp(found.tail_logprob[row])
            assert tail == pytest.approx(1 - sum(expected.values()), abs=1e-5)


@settings(max_examples=EXAMPLES // 2, deadline=None, derandomize=True)
@given(
    splits=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    finer=st.booleans(),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_events_are_the_students_exact_probabilities(
    splits: list[int], finer: bool, seed: int, data: st.DataObject
) -> None:
    """Where nothing is lost: one side has letters, the other a code of longer tokens."""
    letters, longer = greedy([*"ab"]), code(splits)
    teacher, student = (letters, longer) if finer else (longer, letters)
    whole = [text for text in TEXTS if longer.cut(text) != ["<unk>"]]
    told, same = Told(teacher, student, whole, seed), Told(student, student, whole, seed)
    text = data.draw(st.sampled_from(whole))
    sample = Sample("", text)
    found = project(teacher.tokenizer, student.tokenizer, [sample], told.knowledge(sample))
    assert found.weight.all()
    for row in range(found.num_rows):
        exact: dict[int, float] = defaultdict(float)
        for tokens, p in same.going_on(student.cut(text)[:row]):
            exact[student.names.index(tokens[0])] += p
        for event, mass in events_of(found, row).items():
            assert mass == pytest.approx(sum(exact[v] for v in event), abs=1e-6)
        assert math.exp(found.tail_logprob[row]) < 1e-5

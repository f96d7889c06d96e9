"""A teacher's rows as events of the student's tokens: examples, and a slow oracle."""

from __future__ import annotations

import math
from functools import partial
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from fedfuse.alignment import event_table as module
from fedfuse.alignment.event_rows import (
    PlaceTables,
    event_distribution,
    merge_events,
    space_shifts,
)
from fedfuse.alignment.event_table import event_table, table_of_spellings
from fedfuse.alignment.positions import align_rows
from fedfuse.alignment.spelling import LONGEST, NO_TOKEN, spaced, spellings
from fedfuse.data.sample import Sample
from fedfuse.events import EventDistribution
from fedfuse.knowledge.record import Knowledge
from fedfuse.tokenizers.label_rows import LabelRows, label_rows, verbatim_rows
from fedfuse.tokenizers.token_bytes import VocabularyBytes
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.oracles import events as oracle
from tests.tokenizer_kinds import KINDS, LOSSLESS, TEXTS, by_hand, texts_strategy

WHOLE = ["[U]", "[CLS]", "work", "workshop", "worker", "worm", "shop", "a"]
PARTS = ["[U]", "[CLS]", "wor", "##k", "##m", "##ks", "work", "##shop", "##er", "a"]


def knowledge_of(rows: LabelRows, said: list[dict[int, float]], k: int) -> Knowledge:
    """Knowledge with the given probabilities by token id on each row; the rest is tail."""
    indices = np.zeros((len(said), k), dtype=np.int64)
    logs = np.full((len(said), k), -np.inf, dtype=np.float32)
    label = np.empty(len(said), dtype=np.float32)
    tail_logprob = np.full(len(said), -np.inf, dtype=np.float32)
    for row, masses in enumerate(said):
        largest = sorted(masses.items(), key=lambda item: -item[1])
        for slot, (token, mass) in enumerate(largest):
            indices[row, slot], logs[row, slot] = token, math.log(mass)
        rest = 1 - sum(masses.values())
        if rest > 1e-9:
            tail_logprob[row] = math.log(rest)
        label[row] = math.log(masses.get(int(rows.token[row]), rest / 2))
    n = len(rows.offsets) - 1
    ones = np.ones(n, dtype=np.int64)
    return Knowledge(rows.offsets, indices, logs, tail_logprob, label, ones, "s", "p")


def random_knowledge(rows: LabelRows, vocabulary: int, k: int, seed: int) -> Knowledge:
    rng = np.random.default_rng(seed)
    said = []
    for token in rows.token.tolist():
        others = rng.choice(vocabulary, k, replace=False).tolist()
        if rng.random() < 0.7 and token not in others:
            others[0] = token
        mass = rng.dirichlet(np.ones(k + 1))
        said.append(dict(zip(others, mass[:k].tolist(), strict=True)))
    return knowledge_of(rows, said, k)


def project(
    source: TextTokenizer,
    target: TextTokenizer,
    samples: list[Sample],
    knowledge: Knowledge,
    length: int = 100,
) -> EventDistribution:
    rows, own = (label_rows(t, samples, length)[1] for t in (source, target))
    alignment = align_rows(rows, own, "events", verbatim=verbatim_rows(source, samples, rows))
    own_space, other_space = spaced(target.vocabulary_bytes), spaced(source.vocabulary_bytes)
    shift = space_shifts(rows, own, alignment, other_space, own_space)
    tables = PlaceTables.of_rows(shift, partial(event_table, source, target))
    return event_distribution(
        knowledge.distribution, knowledge.label_logprob, rows, own, alignment, tables
    )


def events_of(found: EventDistribution, row: int) -> dict[oracle.Event, float]:
    """Events of a row and their probabilities."""
    order = found.orders[found.order[row]]
    spans = zip(found.start[row], found.stop[row], found.logprobs[row], strict=True)
    return {frozenset(order[a:b].tolist()): math.exp(p) for a, b, p in spans if b > a}


def teach(
    source: TextTokenizer,
    target: TextTokenizer,
    text: str,
    said: list[dict[str, float]],
    row: int = 0,
) -> tuple[dict[frozenset[str], float], float]:
    """What is taught of a text at a row, by tokens' names, and the tail."""
    samples = [Sample("", text)]
    rows = label_rows(source, samples, 100)[1]
    ids = [{source.vocabulary[t]: p for t, p in masses.items()} for masses in said]
    found = project(source, target, samples, knowledge_of(rows, ids, 4))
    names = {i: token for token, i in target.vocabulary.items()}
    named = {
        frozenset(names[i] for i in event): mass for event, mass in events_of(found, row).items()
    }
    return named, math.exp(found.tail_logprob[row])


def name_of(tokenizer: TextTokenizer, token_id: int) -> str:
    return next(name for name, i in tokenizer.vocabulary.items() if i == token_id)


def words(*names: str) -> frozenset[str]:
    return frozenset(names)


def test_a_teachers_token_is_all_tokens_that_it_begins() -> None:
    """The finer teacher means "work", "worker" or "workshop" by "work": its piece is no word."""
    source = by_hand("wordpiece", ["[U]", "[CLS]", "work", "##shop", "##er", "a"], cls="[CLS]")
    target = by_hand("wordpiece", WHOLE, cls="[CLS]")
    got, tail = teach(source, target, "a", [{"work": 0.7, "a": 0.2}])
    assert got == pytest.approx({words("work", "worker", "workshop"): 0.7, words("a"): 0.2})
    assert tail == pytest.approx(0.1)


def test_the_chain_rule_follows_the_label() -> None:
    """ "wor", then "k": work. "m" in place of "k" is worm, "a" in place of "wor" is a."""
    source = by_hand("wordpiece", PARTS[:6] + PARTS[9:], cls="[CLS]")
    target = by_hand("wordpiece", WHOLE, cls="[CLS]")
    said = [{"wor": 0.5, "a": 0.3}, {"##k": 0.6, "##m": 0.2, "##ks": 0.1}]
    got, tail = teach(source, target, "work", said)
    assert got == pytest.approx({words("work"): 0.3, words("worm"): 0.1, words("a"): 0.3})
    # 0.2 of the first step; of the second "works", which is no token, and its rest.
    assert tail == pytest.approx(0.2 + 0.05 + 0.05)


def test_what_no_token_goes_on_with_says_that_the_token_ends() -> None:
    """ "wor", "k" and then "a": the student writes "work"; "e" may be the beginning of "worker"."""
    parts = ["[U]", "[CLS]", "wor", "##k", "##s", "##er", "##e", "a", "[E]"]
    source = by_hand("wordpiece", parts, cls="[CLS]", eos="[E]")
    target = by_hand("wordpiece", [*WHOLE, "works", "[E]"], cls="[CLS]", eos="[E]")
    said = [
        {"wor": 1.0},
        {"##k": 0.8, "a": 0.2},
        {"##s": 0.4, "a": 0.3, "##e": 0.1, "[E]": 0.2},
    ]
    got, tail = teach(source, target, "works", said)
    assert got == pytest.approx({words("works"): 0.32, words("work"): 0.4})
    # No token is "wor" alone; what "e" begins is not known.
    assert tail == pytest.approx(0.2 + 0.08)


def test_a_label_that_was_not_kept_is_carried_on() -> None:
    """Its probability is part of the first step's tail, and must not be counted twice."""
    source = by_hand("wordpiece", PARTS[:6] + PARTS[9:], cls="[CLS]")
    target = by_hand("wordpiece", WHOLE, cls="[CLS]")
    got, tail = teach(source, target, "work", [{"a": 0.6}, {"##k": 1.0}])
    assert got == pytest.approx({words("work"): 0.2, words("a"): 0.6})
    assert tail == pytest.approx(0.2)


def test_a_longer_token_goes_to_its_first_piece() -> None:
    """The coarser teacher: "workshop" and "work" are both the student's "work"."""
    source = by_hand("wordpiece", WHOLE, cls="[CLS]")
    target = by_hand("wordpiece", PARTS[:2] + PARTS[6:], cls="[CLS]")
    got, tail = teach(source, target, "a", [{"workshop": 0.4, "work": 0.3, "a": 0.2, "worm": 0.1}])
    # The student cannot spell "worm".
    assert got == pytest.approx({words("work"): 0.7, words("a"): 0.2})
    assert tail == pytest.approx(0.1)


def test_inside_a_longer_token() -> None:
    """Having read "work", what remains of "workshop" and "worker"; "work" alone says no more."""
    source = by_hand("wordpiece", WHOLE, cls="[CLS]")
    target = by_hand("wordpiece", PARTS[:2] + PARTS[6:], cls="[CLS]")
    said = [{"workshop": 0.4, "worker": 0.2, "work": 0.2, "a": 0.1}]
    got, tail = teach(source, target, "workshop", said, row=1)
    assert got == pytest.approx({words("##shop"): 0.45, words("##er"): 0.225})
    assert tail == pytest.approx(0.325)


def byte_level(letters: str, *merges: tuple[str, str]) -> TextTokenizer:
    """Byte-level tokens: the letters, and what the merges make of them."""
    tokens = ["<s>", *letters, *("".join(pair) for pair in merges)]
    model = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, list(merges)))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return TextTokenizer.from_json(model.to_str(), {"bos": "<s>"})


def test_what_was_changed_is_not_taught() -> None:
    """A teacher in lower case says nothing of a word with a capital."""
    source = by_hand("wordpiece", WHOLE, cls="[CLS]")
    target = byte_level("Waork\u0120", ("o", "r"), ("or", "k"))
    samples = [Sample("", "Work a")]
    rows, own = (label_rows(tokenizer, samples, 100)[1] for tokenizer in (source, target))
    said = [{source.vocabulary["work"]: 1.0}, {source.vocabulary["a"]: 1.0}]
    found = project(source, target, samples, knowledge_of(rows, said, 2))
    assert len(own.token) == 4
    assert found.weight.tolist() == [0, 0, 1, 1]


def test_the_first_word_gains_a_space() -> None:
    """Only WordPiece says " work" of a text that begins with "work"."""
    source = byte_level("workm", ("w", "o"), ("wo", "r"), ("wor", "k"), ("wor", "m"))
    target = by_hand("wordpiece", ["[U]", "[CLS]", "work", "##work", "worm", "##worm"], cls="[CLS]")
    got, _ = teach(source, target, "work", [{"work": 0.5, "worm": 0.2, "w": 0.1}])
    assert got == pytest.approx({words("work"): 0.5, words("worm"): 0.2})
    got, _ = teach(target, source, "work", [{"work": 0.6, "worm": 0.2, "##worm": 0.1}])
    assert got == pytest.approx({words("work"): 0.6, words("worm"): 0.2})


def test_a_teacher_that_excludes_what_was_read_says_nothing() -> None:
    source = by_hand("wordpiece", WHOLE, cls="[CLS]")
    target = by_hand("wordpiece", ["[U]", "[CLS]", *PARTS[6:]], cls="[CLS]")
    samples = [Sample("", "workshop")]
    rows = label_rows(source, samples, 100)[1]
    found = project(source, target, samples, knowledge_of(rows, [{source.vocabulary["a"]: 0.9}], 2))
    assert found.weight.tolist() == [1, 0]


def test_unknown_and_other_special_tokens_are_tail() -> None:
    source = by_hand(
        "wordpiece", ["[U]", "[CLS]", "a", "[SEP]", "[E]"], cls="[CLS]", sep="[SEP]", eos="[E]"
    )
    target = by_hand("wordpiece", ["[X]", "a", "[E]", "[P]"], unk="[X]", eos="[E]", pad="[P]")
    got, tail = teach(source, target, "a", [{"a": 0.4, "[U]": 0.2, "[SEP]": 0.1, "[E]": 0.3}])
    assert got == pytest.approx({words("a"): 0.4, words("[E]"): 0.3})
    assert tail == pytest.approx(0.3)


def test_unknown_and_end_in_one_are_the_end_only_where_nothing_is_unknown() -> None:
    """GPT-2 has bytes for every text; with word pieces a text may become the token."""
    pieces = by_hand("wordpiece", ["[X]", "a", "b"], unk="[X]", eos="[X]")
    plain = by_hand("wordpiece", ["[U]", "a", "[E]", "[C]"], eos="[E]", cls="[C]")
    letters = by_hand("byte-level", ["<e>", "a"], bos="<e>", eos="<e>", unk="<e>")
    for source, target, end, expected in (
        (pieces, plain, "[X]", {}),
        (plain, pieces, "[E]", {}),
        (letters, plain, "<e>", {words("[E]"): 0.3}),
        (plain, letters, "[E]", {words("<e>"): 0.3}),
        (pieces, letters, "[X]", {}),
    ):
        got, tail = teach(source, target, "a", [{"a": 0.4, end: 0.3}])
        assert got == pytest.approx({words("a"): 0.4} | expected)
        assert tail == pytest.approx(0.6 - sum(expected.values()))


def test_a_row_of_a_special_token_teaches_nothing_and_is_not_taught() -> None:
    """Unknown, or written out in the text and found there."""
    pieces = by_hand("wordpiece", ["[U]", "[CLS]", "a", "b"], cls="[CLS]")
    letters = byte_level("abc\u0120[CLS]")
    texts = [Sample("", "a"), Sample("", "c"), Sample("", "a c"), Sample("", "[CLS]")]
    for source, target in ((pieces, letters), (letters, pieces)):
        rows, own = (label_rows(t, texts, 100)[1] for t in (source, target))
        found = project(
            source, target, texts, knowledge_of(rows, [{i: 1.0} for i in rows.token.tolist()], 1)
        )
        known = found.weight > 0
        assert known.sum() == 2
        assert not {"[U]", "[CLS]"} & {name_of(target, i) for i in own.token[known].tolist()}


def test_a_special_token_in_the_text_is_no_text() -> None:
    """Where the model itself finds it; the teacher means an end by it, not these letters."""

    def longest_first(*tokens: str, end: str) -> TextTokenizer:
        vocabulary = {token: i for i, token in enumerate(("<u>", *tokens))}
        model = models.WordPiece(vocabulary, unk_token="<u>", continuing_subword_prefix="")
        return TextTokenizer.from_json(Tokenizer(model).to_str(), {"bos": end, "eos": end})

    finds = longest_first("</s>", *"a</s>\n", end="</s>")
    spells = longest_first("[E]", *"a</s>", "</s>", end="[E]")
    samples = [Sample("", "aa</s>a")]
    for source, target in ((finds, spells), (spells, finds)):
        rows, own = (label_rows(t, samples, 100)[1] for t in (source, target))
        assert len(rows.token) == len(own.token) == 4
        said = [{token: 0.8} for token in rows.token.tolist()]
        found = project(source, target, samples, knowledge_of(rows, said, 2))
        assert found.weight.tolist() == [1, 1, 0, 1]
    ids = [i for i in spellings(spells, finds)[spells.vocabulary["</s>"]].tolist() if i >= 0]
    assert [name_of(finds, i) for i in ids] == ["<", "/", "s", ">"]


@pytest.mark.parametrize(("one", "other"), list(permutations(KINDS, 2)))
def test_what_a_model_puts_on_its_unknown_token_is_tail(
    tokenizers: dict[str, TextTokenizer], one: str, other: str
) -> None:
    source, target = tokenizers[one], tokenizers[other]
    samples = [Sample("", text) for text in TEXTS]
    rows = label_rows(source, samples, 100)[1]
    said = [{source.special_ids["unk"]: 0.9, token: 0.1} for token in rows.token.tolist()]
    found = project(source, target, samples, knowledge_of(rows, said, 2))
    known = found.weight > 0
    assert known.mean() > 0.3
    assert (np.exp(found.tail_logprob[known]) > 0.9 - 1e-6).all()


@pytest.mark.parametrize(("one", "other"), list(permutations(KINDS, 2)))
@pytest.mark.parametrize("shift", [0, 1, -1])
def test_pieces_are_the_tokens_bytes(
    tokenizers: dict[str, TextTokenizer], one: str, other: str, shift: int
) -> None:
    source, target = tokenizers[one], tokenizers[other]
    own, spelled = source.vocabulary_bytes, 0
    pieces = spellings(source, target, shift)
    for token_id in sorted(own.used - own.special):
        ids = [i for i in pieces[token_id].tolist() if i != NO_TOKEN]
        text = own.bytes[token_id]
        if shift:
            text = b" " + text if shift > 0 else text[1:]
        if ids and len(ids) < LONGEST:
            spelled += 1
            joined = b"".join(target.token_bytes[i] for i in ids)
            if target.drops_spaces:
                joined, text = b"".join(joined.split()), b"".join(text.split())
            assert joined == text
        elif other in LOSSLESS and text and shift >= 0:
            assert len(ids) == LONGEST
    assert spelled >= 5


def test_a_token_that_its_tokenizer_never_writes_is_no_spelling() -> None:
    """Of equal bytes, but not made by any merge, or an added token is found first (Pythia's)."""
    model = Tokenizer(
        models.BPE(
            {"<s>": 0, "a": 1, "b": 2, "ab": 3, "\u0120": 4, "\u0120\u0120": 5},
            [("\u0120", "\u0120")],
        )
    )
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.add_tokens([AddedToken("  ", normalized=False)])
    target = TextTokenizer.from_json(model.to_str(), {"bos": "<s>"})
    source = byte_level("ab\u0120", ("a", "b"), ("\u0120", "\u0120"))
    found = spellings(source, target)
    assert found[source.vocabulary["ab"], :3].tolist() == [1, 2, NO_TOKEN]
    assert found[source.vocabulary["\u0120\u0120"], :2].tolist() == [6, NO_TOKEN]


@pytest.mark.parametrize("model", [models.WordLevel, models.WordPiece])
def test_a_tokenizer_without_an_unknown_token_spells_what_it_can(model: type) -> None:
    rust = Tokenizer(model({"<s>": 0, "ab": 1, "c": 2}))
    rust.pre_tokenizer = pre_tokenizers.Whitespace()
    words_only = TextTokenizer.from_json(rust.to_str(), {"bos": "<s>"})
    letters = byte_level("abcd\u0120", ("a", "b"), ("\u0120", "c"))
    found = spellings(letters, words_only)[:, 0]
    spelled = {name: found[i] for name, i in letters.vocabulary.items() if found[i] != NO_TOKEN}
    assert spelled == {"<s>": 0, "\u0120c": 2}
    back = spellings(words_only, letters)
    ids = [letters.vocabulary[name] for name in ("\u0120", "ab", "\u0120c")]
    assert back[:3, :3].tolist() == [[0, -1, -1], [ids[0], ids[1], -1], [ids[2], -1, -1]]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    data=st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=1, max_size=12),
    size=st.just(4),
)
def test_ranges_are_the_tokens_that_begin_so(data: list[list[int]], size: int) -> None:
    pieces = np.full((len(data), LONGEST), NO_TOKEN, np.int32)
    for token, spelled in enumerate(data):
        pieces[token, : len(spelled)] = spelled
    student, teacher = (
        VocabularyBytes([b"x"] * number, {}, frozenset(), frozenset(), frozenset(range(number)))
        for number in (len(data), size)
    )
    nothing = np.full((size, LONGEST), NO_TOKEN, np.int32)
    table = table_of_spellings(pieces, nothing, student, teacher)
    spelled_by = dict(enumerate(data))
    assert sorted(table.order.tolist()) == list(range(len(data)))
    assert table.order[table.place].tolist() == list(range(len(data)))
    prefixes = {tuple(s[:n]) for s in data for n in range(1, len(s) + 1)}
    for prefix in sorted(prefixes | {(0, 0, 0, 1), (3,)}):
        before = np.array(0)
        for depth, token in enumerate(prefix):
            start, stop = table.event(depth, before, np.array(token))
            before = np.where(stop > start, start, -1)
        expected = oracle.begins_with(spelled_by, prefix) if prefix in prefixes else frozenset()
        assert frozenset(table.order[start:stop].tolist()) == expected


def test_nested_ranges_become_one() -> None:
    start = np.array([[5, 2, 0, 7, 2]])
    stop = np.array([[6, 9, 1, 8, 9]])
    mass = np.array([[0.1, 0.2, 0.3, 0.0, 0.05]])
    a, b, p = merge_events(start, stop, mass)
    found = {(x, y): m for x, y, m in zip(a[0], b[0], p[0], strict=True) if m > 0}
    assert found == pytest.approx({(0, 1): 0.3, (2, 9): 0.35})


@pytest.mark.parametrize(("one", "other"), list(permutations(KINDS, 2)))
def test_equals_the_oracle(tokenizers: dict[str, TextTokenizer], one: str, other: str) -> None:
    source, target = tokenizers[one], tokenizers[other]
    spelled = {
        shift: [
            {
                i: [p for p in row if p != NO_TOKEN]
                for i, row in enumerate(spellings(a, b, shift * sign).tolist())
                if row[0] != NO_TOKEN
            }
            for a, b, sign in ((target, source, -1), (source, target, 1))
        ]
        for shift in (0, 1, -1)
    }

    own_bytes = source.vocabulary_bytes
    first_byte = {i: b[:1] for i, b in enumerate(own_bytes.bytes) if b}
    first_byte = {i: b for i, b in first_byte.items() if i not in own_bytes.special}
    ends = {i for i, roles in own_bytes.roles.items() if "eos" in roles}
    first_byte |= {i: b"" for i in ends if i in spelled[0][1]}

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(
        pairs=st.lists(
            st.tuples(texts_strategy(6), texts_strategy(12) | st.sampled_from(TEXTS)), max_size=3
        ),
        seed=st.integers(0, 100),
        length=st.sampled_from([8, 200]),
    )
    def check(pairs: list[tuple[str, str]], seed: int, length: int) -> None:
        samples = [Sample(prompt, answer) for prompt, answer in pairs]
        rows, own = (label_rows(t, samples, length)[1] for t in (source, target))
        paired = align_rows(rows, own, "exact-boundary").source_row.tolist()
        verbatim = verbatim_rows(source, samples, rows)
        knowledge = random_knowledge(rows, source.vocab_size, 5, seed)
        found = project(source, target, samples, knowledge, length)
        for t, (row, number, into) in enumerate(oracle.alignment(rows, own, paired)):
            label = int(own.token[t])
            known = label not in target.vocabulary_bytes.special
            if row < 0 or not known or not verbatim[row : row + number].all():
                assert found.weight[t] == 0
                continue
            shift = oracle.space_shift_of(
                rows, own, row, t - into, source.token_bytes, target.token_bytes
            )
            student, teacher = spelled[shift]
            if into:
                before = own.token[t - into : t].tolist()
                expected = oracle.inside(knowledge, rows, row, before, label, teacher)
            else:
                texts = target.token_bytes, first_byte
                expected = oracle.along_label(
                    knowledge, rows, row, number, label, student, teacher, *texts
                )
            assert bool(found.weight[t]) == bool(expected)
            got = events_of(found, t) if found.weight[t] else {}
            largest = sorted(expected, key=lambda item: -item[1])[: knowledge.k]
            assert sum(got.values()) == pytest.approx(sum(p for _, p in largest), abs=1e-5)
            mass = dict(expected)
            for event, probability in got.items():
                assert probability == pytest.approx(mass[event], rel=1e-4, abs=1e-7)
            if found.weight[t]:
                tail = math.exp(found.tail_logprob[t])
                assert sum(got.values()) + tail == pytest.approx(1, abs=1e-5)

    check()


def test_cached_spellings(
    tokenizers: dict[str, TextTokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tokenizers["wordpiece"], tokenizers["unigram"]
    first = event_table(source, target, 0, tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    monkeypatch.setattr(module, "spellings", lambda *_: pytest.fail("spelled again"))
    np.testing.assert_array_equal(event_table(source, target, 0, tmp_path).order, first.order)
    monkeypatch.undo()
    for file in files:
        file.write_bytes(file.read_bytes()[:50])
    np.testing.assert_array_equal(event_table(source, target, 0, tmp_path).order, first.order)
    assert all(file.stat().st_size > 50 for file in files)

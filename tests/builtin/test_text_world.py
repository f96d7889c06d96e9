"""The built-in world: exact floors, disjoint splits, and a language without the associations."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import chain, combinations

import numpy as np
import pytest

from fedfuse.builtin import text_world as world_module
from fedfuse.builtin.text_lexicon import COLOURS, LEXICONS
from fedfuse.builtin.text_world import Domain, World, pretraining_text, shelf_marks
from fedfuse.config.data import DataConfig
from fedfuse.data.sample import Sample, Splits
from fedfuse.data.splits import check_splits
from fedfuse.errors import FedfuseError

SIZE = DataConfig(private=400, public=30, holdout=20, test=3, questions=40)


def words_of(domain: Domain, sample: Sample) -> tuple[int, int]:
    """Entity and answer of a sentence."""
    prompt = sample.prompt.split()
    (entity,) = [i for i, e in enumerate(domain.lexicon.entities) if e in prompt]
    return entity, domain.lexicon.answers.index(sample.answer.strip(" ."))


def splits(seed: int = 0, **changes: int) -> Splits:
    return World(seed).splits(replace(SIZE, **changes), 4)


@pytest.fixture(scope="module")
def drawn() -> Splits:
    return splits()


def test_everything_follows_from_the_seed(drawn: Splits) -> None:
    again, other = splits(), splits(seed=1)
    assert again == drawn
    assert other.floor != drawn.floor
    assert other.public != drawn.public
    assert pretraining_text(20, 0) == pretraining_text(20, 0)
    assert pretraining_text(20, 0) != pretraining_text(20, 1)
    assert not np.allclose(World(0).domains[0].table, World(1).domains[0].table)


def test_sizes(drawn: Splits) -> None:
    assert [len(part) for part in drawn.private] == [400] * 4
    assert len(drawn.public) == 4 * 30
    assert len(drawn.holdout) == 4 * 20
    assert len(drawn.test) == 4 * 3 * 30
    assert len(drawn.questions) == 4 * 40
    assert drawn.domains == ["bank", "clinic", "court", "workshop"]
    assert {s.domain for s in drawn.private[1]} == {"clinic"}


@pytest.mark.parametrize("seed", range(3))
def test_splits_are_disjoint(seed: int) -> None:
    """Questions too: a model that has a private sentence by heart would beat the Bayes choice."""
    drawn = splits(seed, private=2000)
    check_splits(drawn)
    private = list(chain.from_iterable(drawn.private))
    parts = [private, drawn.public, drawn.holdout, drawn.test, drawn.questions]
    texts = [{sample.text for sample in part} for part in parts]
    assert [len(t) for t in texts] == [len(part) for part in parts]
    assert all(not first & second for first, second in combinations(texts, 2))


def test_answers_follow_the_table() -> None:
    """Frequencies over 4000 private sentences, by a chi-square statistic per domain."""
    world = World(seed=2, domains=2)
    drawn = world.splits(DataConfig(private=4000, public=1, holdout=1, test=1, questions=0), 1)
    for domain in world.domains:
        pairs = [words_of(domain, s) for s in drawn.private[0] if s.domain == domain.name]
        counts = np.zeros(domain.table.shape)
        np.add.at(counts, tuple(np.array(pairs).T), 1)
        expected = domain.table * counts.sum(1, keepdims=True)
        assert counts[domain.table < 1e-5].sum() <= 3
        frequent = expected > 5
        chi = ((counts - expected) ** 2 / np.where(frequent, expected, 1))[frequent].sum()
        degrees = frequent.sum()
        assert degrees > 80
        assert abs(chi - degrees) < 5 * math.sqrt(2 * degrees)


def test_entropy_is_that_of_a_sum(drawn: Splits) -> None:
    assert drawn.floor is not None
    for domain in World(0).domains:
        entropy = expected_bytes = 0.0
        for row in domain.table.tolist():
            assert sum(row) == pytest.approx(1)
            for p, word in zip(row, domain.lexicon.answers, strict=True):
                if p > 0:
                    entropy -= p * math.log(p) / len(domain.table)
                expected_bytes += p * len(f" {word}.") / len(domain.table)
        assert domain.entropy() == pytest.approx(entropy)
        assert domain.answer_bytes() == pytest.approx(expected_bytes)
        assert drawn.floor.loss[domain.name] == pytest.approx(entropy / expected_bytes)
        # Neither a lookup table nor noise.
        assert 0.5 < entropy < 0.9 * math.log(len(domain.lexicon.answers))


def test_a_perfect_model_reaches_the_floor() -> None:
    world = World(seed=3)
    drawn = world.splits(replace(SIZE, private=10, test=60), 1)
    assert drawn.floor is not None
    for domain in world.domains:
        nats = size = 0.0
        for sample in (s for s in drawn.test if s.domain == domain.name):
            nats -= math.log(domain.table[words_of(domain, sample)])
            size += sample.answer_bytes
        assert nats / size == pytest.approx(drawn.floor.loss[domain.name], rel=0.02)


def test_systematic_sampling_is_unbiased_and_steady() -> None:
    domain = Domain(LEXICONS[0], 0)
    rng = np.random.default_rng(0)
    counts = np.zeros((300, domain.table.shape[1]))
    for trial in counts:
        answers, times = np.unique(domain.systematic_answers(4, 10, rng), return_counts=True)
        trial[answers] = times
    # Never more than one away from what the table expects, and right on average.
    assert np.abs(counts - 10 * domain.table[4]).max() < 1
    np.testing.assert_allclose(counts.mean(0), 10 * domain.table[4], atol=0.15)


def test_systematic_sampling_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    domain = Domain(LEXICONS[0], 0)
    domain.table = np.array([[0.5, 0.0, 0.3, 0.2 - 1e-12]])

    class Fixed:
        def random(self) -> float:
            return self.value

        def __init__(self, value: float) -> None:
            self.value = value

    points = {0.2: [0, 0, 0, 2, 3], 0.999999999999: [0, 0, 2, 2, 3]}  # the last beyond the sum
    for value, answers in points.items():
        assert domain.systematic_answers(0, 5, Fixed(value)) == answers  # type: ignore[arg-type]


def test_questions(drawn: Splits) -> None:
    domains = {d.name: d for d in World(0).domains}
    places = Counter()
    for question in drawn.questions:
        domain = domains[question.domain]
        assert len(set(question.options)) == len(question.options) == 4
        assert question.options[question.label] == question.answer
        known = {f" {word}." for word in domain.lexicon.answers}
        assert known >= set(question.options)
        places[question.label] += 1
    assert min(places.values()) > 20  # of 160: no place gives the answer away


def test_bayes_accuracy_is_that_of_brute_force(drawn: Splits) -> None:
    """Given entity and options, every option is right with a probability found by enumeration."""
    assert drawn.floor is not None
    for domain in World(0).domains:
        best = []
        for question in (q for q in drawn.questions if q.domain == domain.name):
            entity, _ = words_of(domain, question)
            options = [domain.lexicon.answers.index(o.strip(" .")) for o in question.options]
            others = math.comb(len(domain.lexicon.answers) - 1, 3)
            # P(right = o, the three others are the wrong ones)
            joint = [domain.table[entity, o] / others for o in options]
            best.append(max(joint) / sum(joint))
        assert drawn.floor.accuracy[domain.name] == pytest.approx(np.mean(best))
        assert 0.6 < np.mean(best) < 1


def test_the_bayes_choice_is_as_often_right_as_it_says() -> None:
    """Over 3000 questions: three standard errors are below 0.025."""
    domain = Domain(LEXICONS[1], 5)
    rng = np.random.default_rng(0)
    right, chances = [], []
    for _ in range(3000):
        question, chance = domain.question(set(), rng)
        entity, _ = words_of(domain, question)
        options = [domain.lexicon.answers.index(o.strip(" .")) for o in question.options]
        right.append(int(np.argmax(domain.table[entity, options])) == question.label)
        chances.append(chance)
    assert np.mean(right) == pytest.approx(np.mean(chances), abs=0.025)


def test_no_questions_no_accuracy() -> None:
    drawn = splits(questions=0)
    assert drawn.questions == []
    assert drawn.floor is not None
    assert set(drawn.floor.accuracy.values()) == {0.0}


def test_the_pretraining_text_holds_no_association() -> None:
    """Answers given an entity are uniform: the statistic is that of noise, and knows no table."""
    samples = pretraining_text(6000, seed=0)
    marks = shelf_marks(0)
    for lexicon in LEXICONS:
        domain = Domain(lexicon, 0)
        counts = np.zeros(domain.table.shape)
        own = [s for s in samples if s.domain == domain.name]
        facts = [s for s in own if "archive" in s.prompt]
        assert len(facts) == len(own) // 2 == 3000
        for sample in own:
            if "archive" not in sample.prompt:
                counts[words_of(domain, sample)] += 1
        expected = counts.sum() / counts.size
        chi = ((counts - expected) ** 2).sum() / expected
        degrees = counts.size - 1
        assert abs(chi - degrees) < 5 * math.sqrt(2 * degrees)
        centred = counts - counts.mean()
        correlation = (centred * (domain.table - domain.table.mean())).sum()
        correlation /= np.sqrt((centred**2).sum()) * np.sqrt(((domain.table - 1 / 16) ** 2).sum())
        assert abs(correlation) < 0.15
        # Facts are about single words, with marks that name no other word.
        for sample in facts:
            words = set(sample.text.replace(".", "").split())
            (word,) = words & {*lexicon.entities, *lexicon.answers}
            assert set(marks[word]) <= words


def test_shelf_marks_are_the_words_own() -> None:
    marks = shelf_marks(0)
    words = [w for lexicon in LEXICONS for w in lexicon.entities + lexicon.answers]
    assert len(words) == len(set(words)) == len(marks) == len(set(marks.values()))
    assert {colour for mark in marks.values() for colour in mark} <= set(COLOURS)
    assert shelf_marks(1) != marks


@pytest.mark.parametrize("domains", [0, -1, 5])
def test_a_number_of_domains_that_does_not_exist(domains: int) -> None:
    with pytest.raises(FedfuseError, match=rf"data\.domains: expected 1 to 4, got {domains}"):
        World(0, domains)


def test_fewer_domains_are_the_first() -> None:
    two = World(0, 2)
    assert [d.name for d in two.domains] == ["clinic", "bank"]
    np.testing.assert_array_equal(two.domains[1].table, World(0).domains[1].table)


def test_a_world_that_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty entities and three answers or so, in a grammar that has no more than one sentence."""
    monkeypatch.setattr(world_module, "MAX_DRAWS", 5)
    monkeypatch.setattr(world_module, "_prompt", lambda frame, fill, rng: fill["entity"])
    with pytest.raises(FedfuseError, match="no more distinct sentences for domain 'clinic'"):
        splits()

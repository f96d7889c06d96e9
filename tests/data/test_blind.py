"""Blind questions: each option is right once, and nothing that is sent says for which prompt."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler

from fedfuse.builtin.text_world import World
from fedfuse.config.data import DataConfig
from fedfuse.data.blind import OPTIONS, blind_questions
from fedfuse.data.sample import Sample

SAMPLES = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("vwxyz")), max_size=40).map(
    lambda drawn: [Sample(f"{i}", answer, domain) for i, (domain, answer) in enumerate(drawn)]
)


@given(SAMPLES, st.integers(0, 5))
def test_every_option_of_a_group_is_right_once(samples: list[Sample], seed: int) -> None:
    groups: dict[tuple[tuple[str, ...], int], list[Sample]] = defaultdict(list)
    seen: Counter[tuple[str, ...]] = Counter()
    blind = blind_questions(samples, seed)
    assert blind.shown == [Sample(q.prompt, q.answer, q.domain) for q in blind.asked]
    for question in blind.asked:
        assert question.options[question.label] == question.answer
        assert Sample(question.prompt, question.answer, question.domain) in samples
        key = question.options
        groups[key, seen[key] // len(key)].append(question)
        seen[key] += 1

    for (options, _), members in groups.items():
        assert 2 <= len(options) <= OPTIONS
        assert sorted(question.answer for question in members) == list(options)
    prompts = [question.prompt for members in groups.values() for question in members]
    assert len(set(prompts)) == len(prompts)


@given(SAMPLES, st.integers(0, 5))
def test_what_is_left_has_one_answer(samples: list[Sample], seed: int) -> None:
    asked = {question.prompt for question in blind_questions(samples, seed).asked}
    for domain in "ab":
        left = {s.answer for s in samples if s.domain == domain and s.prompt not in asked}
        assert len(left) <= 1


def test_classes_as_domains_are_asked_together() -> None:
    """Each domain has one answer: who is trusted there is told by questions of all."""
    answers = {"animal": "cat", "place": "Rome", "number": "12", "a": "b"}
    samples = [
        Sample(f"{answer} {number}", answer, domain)
        for domain, answer in answers.items()
        for number in range(5)
    ]
    mixed = [Sample(f"{number}", f"{number}", "mixed") for number in range(4)]
    asked = blind_questions([*samples, *mixed], 0).asked
    assert len(asked) == 24
    assert {question.domain for question in asked} == {*answers, "mixed"}
    for question in asked:
        expected = {f"{n}" for n in range(4)} if question.domain == "mixed" else {*answers.values()}
        assert set(question.options) == expected


def test_text_without_a_prompt_is_asked_how_it_goes_on() -> None:
    texts = [
        "The sun rises in the east.",
        "Rain falls\non the hills.",
        "\u4eca\u65e5\u306f\u66c7",
        "a",
    ]
    blind = blind_questions([Sample("", text, "a") for text in texts], 0)
    found = {question.prompt: question.answer for question in blind.asked}
    assert found == {
        "The sun rises": " in the east.",
        "Rain falls\non": " the hills.",
        "\u4eca\u65e5": "\u306f\u66c7",
        "": "a",
    }
    [options] = {question.options for question in blind.asked}
    assert set(options) == set(found.values())
    assert [sample.answer for sample in blind.shown] == [q.text for q in blind.asked]


@pytest.fixture(scope="module")
def world() -> tuple[list[Sample], list[Sample]]:
    """Public samples, and blind ones of the same world."""
    splits = World(3).splits(DataConfig(private=4, public=150, blind=150), 4)
    return splits.public, splits.blind


def test_a_classifier_cannot_tell_blind_prompts(world: tuple[list[Sample], list[Sample]]) -> None:
    public, blind = world
    texts = CountVectorizer(ngram_range=(1, 2)).fit_transform([s.prompt for s in public + blind])
    is_blind = np.repeat([0, 1], [len(public), len(blind)])

    found = cross_val_score(LogisticRegression(), texts, is_blind, cv=5)

    assert abs(found.mean() - 0.5) < 0.05


def test_a_classifier_cannot_tell_the_right_option(
    world: tuple[list[Sample], list[Sample]],
) -> None:
    """From the option, where it stands, how often it is offered, and the order of the prompts."""
    questions = blind_questions(world[1], 0).asked
    offered = Counter(option for question in questions for option in question.options)
    pairs = [(q, i, place) for i, q in enumerate(questions) for place in range(len(q.options))]
    facts = [
        {
            f"option{question.options[place]}": 1,
            "place": place,
            "often": offered[question.options[place]],
            f"turn{index % len(question.options)}, place{place}": 1,
        }
        for question, index, place in pairs
    ]

    right = np.array([question.label == place for question, _, place in pairs])
    model = make_pipeline(DictVectorizer(), MaxAbsScaler(), LogisticRegression())

    found = cross_val_score(model, facts, right, cv=5, scoring="roc_auc")

    assert abs(found.mean() - 0.5) < 0.06

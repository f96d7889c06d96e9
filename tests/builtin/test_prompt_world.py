"""The built-in world of prompts: its words, its tasks, and that accuracy is a matter of wording."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from random import Random

import pytest

from fedfuse.builtin.instructions import MAX_WORDS, draw_drill, draw_exercise, draw_note
from fedfuse.builtin.prompt_lexicon import ASPECTS, BRANDS, FORMS, vocabulary
from fedfuse.builtin.prompt_models import PROMPT_RECIPES, build_prompt_model
from fedfuse.builtin.prompt_world import VAGUE, WORLD_TASKS, world_task
from fedfuse.config.feddtpt import ExampleCounts
from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.local_black_box import LocalBlackBox
from fedfuse.models.causal_lm import load_causal_lm

SIZE = ExampleCounts(private=8, public=12, validation=12, test=24)


def test_every_word_has_one_meaning_but_weak_hints_have_two() -> None:
    hints = Counter(word for aspect in ASPECTS for word in aspect.weak)
    assert set(hints.values()) == {2}
    for one, other in combinations(ASPECTS, 2):
        assert len(set(one.weak) & set(other.weak)) <= 1
    words = [word for aspect in ASPECTS for word in aspect.labels + aspect.codes + aspect.neutral]
    words += [word for aspect in ASPECTS for word in aspect.strong]
    words += [word for aspect in ASPECTS for meaning in aspect.words for word in meaning]
    words += [*hints, *BRANDS, *(word for form in FORMS.values() for word in form)]
    assert len(words) == len(set(words))


@pytest.mark.parametrize("draw", [draw_exercise, draw_drill])
def test_text_is_in_the_vocabulary(draw: object) -> None:
    rng = Random(0)
    known = set(vocabulary())
    assert len(known) == len(vocabulary())
    for _ in range(2000):
        exercise = draw(rng)
        assert exercise.instruction
        assert len(exercise.instruction.split()) <= MAX_WORDS
        assert set(f"{exercise.question} {exercise.answer}".split()) <= known
    for name in WORLD_TASKS:
        assert set(f"{VAGUE} {world_task(name).good}".split()) <= known


def test_a_drill_answers_what_it_asks() -> None:
    """Of every drill the answer can be told from the words."""
    rng = Random(1)
    for _ in range(500):
        drill = draw_drill(rng)
        asked = set(drill.instruction.split())
        (aspect,) = (aspect for aspect in ASPECTS if asked & set(aspect.strong))
        (form,) = (form for form, words in FORMS.items() if asked & set(words))
        said = set(drill.note.split())
        (value,) = (value for value, words in enumerate(aspect.words) if said & set(words))
        assert drill.answer == (aspect.labels if form == "word" else aspect.codes)[value]


def test_a_note_says_what_it_was_asked_to() -> None:
    rng = Random(2)
    left_open = 0
    for number in range(400):
        note, values = draw_note(rng, {"carrier": number % 3})
        assert values["carrier"] == number % 3
        said = set(note.split())
        for aspect in ASPECTS:
            told = [value for value, words in enumerate(aspect.words) if said & set(words)]
            assert told == ([values[aspect.name]] if aspect.name in values else [])
            assert told or said & set(aspect.neutral)
            left_open += not told
    assert 0.15 < left_open / (400 * 5) < 0.25


@pytest.mark.parametrize("name", WORLD_TASKS)
def test_splits_are_disjoint_balanced_and_seeded(name: str) -> None:
    task = world_task(name)
    found = task.splits(SIZE, 3, "iid", 1.0, seed=5)
    flat = [example for part in found.private for example in part]
    everything = [*flat, *found.public, *found.validation, *found.test]
    assert len({example.text for example in everything}) == len(everything) == 24 + 12 + 12 + 24
    assert [len(part) for part in found.private] == [8] * 3
    for part in (found.public, found.validation, found.test):
        assert len(set(Counter(example.label for example in part).values())) == 1
    assert task.splits(SIZE, 3, "iid", 1.0, seed=5) == found
    assert task.splits(SIZE, 3, "iid", 1.0, seed=6).public != found.public
    more = task.splits(SIZE, 4, "dirichlet-equal", 0.1, seed=5)
    assert (more.public, more.validation, more.test) == (
        found.public,
        found.validation,
        found.test,
    )


def test_labels_are_skewed_where_they_are_to_be() -> None:
    def largest_share(scheme: str) -> float:
        shares = []
        for seed in range(5):
            parts = world_task("goods-word").splits(ExampleCounts(), 10, scheme, 0.1, seed).private
            assert [len(part) for part in parts] == [16] * 10
            shares += [max(Counter(e.label for e in p).values()) / len(p) for p in parts]
        return sum(shares) / len(shares)

    assert largest_share("iid") < 0.5
    assert largest_share("dirichlet-equal") > 0.8


def test_a_task_reads_its_own_form_only() -> None:
    word, code = world_task("goods-word"), world_task("goods-code")
    assert word.task.labels == code.task.labels == ("food", "tool", "cloth", "toy")
    assert (word.task.read("tool"), word.task.read("t")) == ("tool", None)
    assert (code.task.read("tool"), code.task.read("t")) == (None, "tool")
    assert word.task.question("do it", "a note") == "do it | a note =>"
    with pytest.raises(FedfuseError, match=r"expected one of goods-word, .* got 'goods'"):
        world_task("goods")


def test_few_examples_need_a_scheme_that_leaves_nobody_without() -> None:
    with pytest.raises(FedfuseError, match="expected iid or dirichlet-equal, got 'dirichlet'"):
        world_task("day-word").splits(SIZE, 3, "dirichlet", 0.1, seed=0)


def test_accuracy_is_the_prompts(tmp_path: Path) -> None:
    """After a third of the training already: vague prompts fail, clear ones do not."""
    recipe = replace(PROMPT_RECIPES["instructed-llama"], drills=200, steps=300, exercises=8000)
    build_prompt_model(recipe, tmp_path, lambda step: None)
    model = LocalBlackBox(load_causal_lm(str(tmp_path), device="cpu"), max_tokens=2, batch_size=120)
    shares = {}
    for name in ("verdict-code", "amount-word"):
        task = world_task(name)
        examples = task.draw(120, Random(0), set())
        for prompt in (VAGUE, task.good):
            answers = model.answer([task.task.question(prompt, e.text) for e in examples])
            shares[name, prompt] = task.task.right(answers, examples) / len(examples)
        # How far so few steps lead depends on the machine's number of threads.
        assert shares[name, task.good] > shares[name, VAGUE] + 0.3, shares

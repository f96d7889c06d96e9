"""The arithmetic of experiments/prompts, with a black box that is a function."""

from __future__ import annotations

from random import Random

import pytest

from experiments.prompts.world import COLUMNS, measure, summarize, table, wordings
from fedfuse.prompts.lexicon import vocabulary
from fedfuse.prompts.world import WORLD_TASKS, world_task


class Says:
    """Answers ``t`` to whatever names a form, and nothing otherwise."""

    name = "says"

    def answer(self, texts: list[str]) -> list[str]:
        return ["t" if "code" in text.split() else "" for text in texts]


def test_wordings_are_in_the_vocabulary() -> None:
    for name in WORLD_TASKS:
        kinds = wordings(world_task(name))
        assert tuple(kinds) == COLUMNS
        assert {w for prompts in kinds.values() for p in prompts for w in p.split()} <= set(
            vocabulary()
        )


def test_measured_accuracies() -> None:
    """Of four labels one is right, and of four words for the form one is understood."""
    task = world_task("goods-code")
    found = measure(Says(), task, task.draw(40, Random(0), set()))
    assert found == {
        "guess": 0.25,
        "vague": 0.0,
        "weak hint": 0.0,
        "strong hint": 0.0,
        "form": 0.0625,
        "strong hint and form": 0.0625,
        "good": 0.25,
    }


def test_summary_and_table() -> None:
    def cell(task: str, seed: int, value: float) -> dict[str, object]:
        shares = dict.fromkeys(("guess", *COLUMNS), value)
        return {"model": "builtin:instructed-x", "task": task, "seed": seed, **shares}

    found = summarize([cell("a", 0, 0.1), cell("a", 1, 0.3), cell("b", 0, 0.5), cell("b", 1, 0.9)])
    means = {task: row["good"] for task, row in found["builtin:instructed-x"].items()}
    assert means == pytest.approx({"a": 0.2, "b": 0.7, "all": 0.45})
    assert table(found).splitlines()[2].startswith("| x | a | 20 | 20 |")

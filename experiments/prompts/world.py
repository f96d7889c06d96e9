"""How much wording matters in the built-in world: ``python -m experiments.prompts.world``.

Every task with both built-in models, by prompts from vague to clear.
"""

from __future__ import annotations

from functools import cache, partial
from itertools import product
from statistics import mean
from typing import Any

from experiments import harness
from fedfuse.builtin.models import build
from fedfuse.builtin.prompt_lexicon import FORMS
from fedfuse.builtin.prompt_world import VAGUE, WORLD_TASKS, WorldTask, world_task
from fedfuse.config.feddtpt import ExampleCounts
from fedfuse.feddtpt.black_box import BlackBox
from fedfuse.feddtpt.label_tasks import LabelledExample
from fedfuse.feddtpt.local_black_box import LocalBlackBox
from fedfuse.models.causal_lm import load_causal_lm

MODELS = ("builtin:instructed-llama", "builtin:instructed-gpt-neox")
COLUMNS = ("vague", "weak hint", "strong hint", "form", "strong hint and form", "good")


def measure_cell(name: str, task: str, seed: int) -> list[dict[str, Any]]:
    """One model on one task's test set."""
    test = world_task(task).splits(ExampleCounts(), 1, "iid", 1.0, seed).test
    found = measure(local_black_box(name), world_task(task), test)
    return [{"model": name, "task": task, "seed": seed, **found}]


@cache
def local_black_box(name: str) -> LocalBlackBox:
    """A built-in model that answers with one word."""
    lm = load_causal_lm(str(build(name)), device="cpu")
    return LocalBlackBox(lm, max_tokens=2, batch_size=240)


def wordings(task: WorldTask) -> dict[str, list[str]]:
    """Prompts of each kind; where there are several, their mean counts."""
    aspect, forms, read = task.aspect, FORMS[task.form], "read the note below and"
    hints = [f"{read} decide the {hint}" for hint in aspect.strong]
    both = zip(hints, forms, strict=True)
    return {
        "vague": [VAGUE],
        "weak hint": [f"{read} decide the {hint}" for hint in aspect.weak],
        "strong hint": hints,
        "form": [f"{read} answer with a {form}" for form in forms],
        "strong hint and form": [f"{hint} and answer with a {form}" for hint, form in both],
        "good": [task.good],
    }


def measure(model: BlackBox, task: WorldTask, examples: list[LabelledExample]) -> dict[str, float]:
    """Accuracy in [0, 1] by kind of prompt, and of guessing a label."""
    shares = {"guess": round(1 / len(task.task.labels), 4)}
    for kind, prompts in wordings(task).items():
        right = []
        for prompt in prompts:
            answers = model.answer([task.task.question(prompt, e.text) for e in examples])
            right.append(task.task.right(answers, examples) / len(examples))
        shares[kind] = round(mean(right), 4)
    return shares


def summarize(cells: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean over seeds by model, task and kind of prompt; ``all`` is the mean of the tasks."""
    return {
        model: {
            task: {kind: harness.mean_of(rows, kind) for kind in ("guess", *COLUMNS)}
            for task, rows in (harness.grouped(own, "task") | {"all": own}).items()
        }
        for model, own in harness.grouped(cells, "model").items()
    }


def table(summary: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown: a row for each model and task, in percent."""
    kinds = ("guess", *COLUMNS)
    rows = [
        (model.removeprefix("builtin:instructed-"), task, *(f"{100 * row[k]:.0f}" for k in kinds))
        for model, tasks in summary.items()
        for task, row in tasks.items()
    ]
    return harness.markdown(("model", "task", *kinds), rows, text_columns=2)


@harness.experiment("world.json", "prompts.md", {"world": table})
def main(seeds: harness.Seeds = "0", output: harness.Output = harness.RUNS) -> harness.Study:
    """Measure; write world.json beside this file and the table of docs/prompts.md.

    The seeds are those of the test sets.
    """
    return harness.Study(
        cells={
            (name.replace(":", "-"), task, seed): partial(measure_cell, name, task, seed)
            for name, task, seed in product(MODELS, WORLD_TASKS, harness.numbers(seeds))
        },
        folder="prompts-world",
        summarize=summarize,
    )

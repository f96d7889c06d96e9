"""How much wording matters in the built-in world: ``python -m experiments.prompts.world``.

Every task with both built-in models, by prompts from vague to clear.
"""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
from rich.progress import track

from experiments.frame import put_table, write_results
from fedfuse.builtin.models import build
from fedfuse.builtin.prompt_lexicon import FORMS
from fedfuse.builtin.prompt_world import VAGUE, WORLD_TASKS, WorldSize, WorldTask, world_task
from fedfuse.feddtpt.black_box import BlackBox
from fedfuse.feddtpt.label_tasks import Example
from fedfuse.feddtpt.local_black_box import LocalModel
from fedfuse.models.causal_lm import load_causal_lm

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
MODELS = ("builtin:instructed-llama", "builtin:instructed-gpt-neox")
COLUMNS = ("vague", "weak hint", "strong hint", "form", "strong hint and form", "good")


def main(
    seeds: Annotated[str, typer.Option(help="Seeds of the test sets, joined by commas.")] = "0",
) -> None:
    """Measure; write world.json beside this file and the table of docs/prompts.md."""
    started = time.monotonic()
    numbers = [int(seed) for seed in seeds.split(",")]
    cells = []
    for name in MODELS:
        lm = load_causal_lm(str(build(name)), device="cpu")
        model = LocalModel(lm, max_tokens=2, batch_size=240)
        for task in track(WORLD_TASKS, name):
            for seed in numbers:
                test = world_task(task).splits(WorldSize(), 1, "iid", 1.0, seed).test
                found = measure(model, world_task(task), test)
                cells.append({"model": name, "task": task, "seed": seed, **found})
    summary = summarize(cells)
    write_results(
        HERE / "world.json",
        command=f"python -m experiments.prompts.world --seeds {seeds}",
        started=started,
        summary=summary,
        cells=cells,
        seeds=numbers,
    )
    put_table(DOCS / "prompts.md", table(summary), "world")


def wordings(task: WorldTask) -> dict[str, list[str]]:
    """Prompts of each kind; where there are several, their mean counts."""
    aspect, forms = task.aspect, FORMS[task.form]
    return {
        "vague": [VAGUE],
        "weak hint": [f"read the note below and decide the {hint}" for hint in aspect.weak],
        "strong hint": [f"read the note below and decide the {hint}" for hint in aspect.strong],
        "form": [f"read the note below and answer with a {form}" for form in forms],
        "strong hint and form": [
            f"read the note below and decide the {hint} and answer with a {form}"
            for hint, form in zip(aspect.strong, forms, strict=True)
        ],
        "good": [task.good],
    }


def measure(model: BlackBox, task: WorldTask, examples: list[Example]) -> dict[str, float]:
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
    found: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for model in dict.fromkeys(cell["model"] for cell in cells):
        own = [cell for cell in cells if cell["model"] == model]
        for task in [*dict.fromkeys(cell["task"] for cell in own), "all"]:
            rows = [cell for cell in own if task in (cell["task"], "all")]
            kinds = ("guess", *COLUMNS)
            found[model][task] = {k: round(mean(row[k] for row in rows), 4) for k in kinds}
    return dict(found)


def table(summary: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown: a row for each model and task, in percent."""
    kinds = ("guess", *COLUMNS)
    lines = [f"| model | task | {' | '.join(kinds)} |", "|---|---|" + "---:|" * len(kinds)]
    for model, tasks in summary.items():
        for task, row in tasks.items():
            values = " | ".join(f"{100 * row[kind]:.0f}" for kind in kinds)
            lines.append(f"| {model.removeprefix('builtin:instructed-')} | {task} | {values} |")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)

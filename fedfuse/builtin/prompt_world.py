"""The built-in world of prompts: label tasks whose accuracy depends on the wording of the prompt.

All tasks have the same inputs: a note has six aspects, and a task asks for one of them, by its
label or by the letter for it. So a prompt must say which aspect and which form. A prompt that says
neither leaves a model to guess the task as well as the label.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from fedfuse.builtin.instructions import answer, draw_note
from fedfuse.builtin.prompt_lexicon import ASPECTS, FORMS, LAYOUT, Aspect
from fedfuse.config.feddtpt import ExampleCounts, FedDTPTConfig
from fedfuse.errors import check
from fedfuse.feddtpt.label_datasets import POOL, ExampleSplits, partition_examples
from fedfuse.feddtpt.label_tasks import LabelledExample, Task

WORLD_TASKS = tuple(f"{aspect.name}-{form}" for aspect in ASPECTS for form in FORMS)
# Manual prompt that fits all tasks and names none.
VAGUE: str = FedDTPTConfig().start


@dataclass(frozen=True, slots=True)
class WorldTask:
    """A task of the world.

    Attributes:
        task: labels, template and name.
        aspect: aspect that it asks for.
        form: form of the answer, a key of ``FORMS``.
        good: a prompt that asks clearly: the ceiling that a search may reach.
    """

    task: Task
    aspect: Aspect
    form: str
    good: str

    def draw(self, count: int, rng: Random, seen: set[str]) -> list[LabelledExample]:
        """Draw examples in random order, evenly over labels, whose notes are not yet ``seen``."""
        values = [number % len(self.aspect.labels) for number in range(count)]
        rng.shuffle(values)
        return [
            LabelledExample(self._note(value, rng, seen), self.aspect.labels[value])
            for value in values
        ]

    def splits(
        self, counts: ExampleCounts, num_partitions: int, scheme: str, alpha: float, seed: int
    ) -> ExampleSplits:
        """Draw disjoint splits; ``partition_examples`` explains ``scheme`` and ``alpha``."""
        rng, seen = Random(f"{self.task.name} {seed}"), set[str]()
        # In this order, so that the number of clients changes nothing but the private examples.
        pool_size = POOL * counts.private * num_partitions
        test, validation, public, pool = (
            self.draw(count, rng, seen)
            for count in (counts.test, counts.validation, counts.public, pool_size)
        )
        private = partition_examples(
            self.task, pool, num_partitions, counts.private, scheme, alpha, seed
        )
        return ExampleSplits(private, public, validation, test)

    def _note(self, value: int, rng: Random, seen: set[str]) -> str:
        while (note := draw_note(rng, {self.aspect.name: value})[0]) in seen:
            pass
        seen.add(note)
        return note


def world_task(name: str) -> WorldTask:
    """A task by its name, one of ``WORLD_TASKS``.

    Raises:
        FedfuseError: for another name.
    """
    check("task", repr(name), f"one of {', '.join(WORLD_TASKS)}", name in WORLD_TASKS)
    asked, form = name.rsplit("-", 1)
    aspect = next(aspect for aspect in ASPECTS if aspect.name == asked)
    values = range(len(aspect.labels))
    verbalizer = {aspect.labels[value]: (answer(aspect, value, form),) for value in values}
    hints, forms = aspect.strong, FORMS[form]
    good = (
        f"read the note below and decide the {hints[0]} and {hints[1]} "
        f"and answer with a {forms[0]} {forms[1]}"
    )
    return WorldTask(Task(name, verbalizer, LAYOUT), aspect, form, good)

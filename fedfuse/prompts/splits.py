"""The examples of a task as a federation needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedfuse.data.partition import partition
from fedfuse.data.sample import Sample
from fedfuse.prompts.tasks import Example, Task


@dataclass(frozen=True, slots=True)
class ExampleSplits:
    """Disjoint sets of examples.

    Attributes:
        private: ``D_k``, one list per client; never leaves it.
        public: ``D_g``, which every client holds, balanced between the labels.
        validation: the server's, to choose between prompts.
        test: held out, for the reported accuracies.
    """

    private: list[list[Example]]
    public: list[Example]
    validation: list[Example]
    test: list[Example]


def deal(
    task: Task,
    examples: Sequence[Example],
    num_partitions: int,
    scheme: str,
    alpha: float,
    seed: int,
) -> list[list[Example]]:
    """Deal examples to clients: ``partition``, with a task's labels as classes.

    Few examples with strong skew need ``dirichlet-equal``: ``dirichlet`` leaves clients empty.

    Raises:
        FedfuseError: as ``partition``.
    """
    labels = task.labels
    samples = [Sample(e.text, e.label, task.name, labels, labels.index(e.label)) for e in examples]
    parts = partition(samples, scheme, num_partitions, alpha, seed)
    return [[Example(sample.prompt, sample.answer) for sample in part] for part in parts]

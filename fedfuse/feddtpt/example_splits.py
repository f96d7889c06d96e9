"""The examples of a task as a federation needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedfuse.data.partition import partition
from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.label_tasks import Example, Task

# Of ``fedfuse.data.partition``, those that give all clients equally many.
SCHEMES = ("iid", "dirichlet-equal")


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
    pool: Sequence[Example],
    num_partitions: int,
    per_client: int,
    scheme: str,
    alpha: float,
    seed: int,
) -> list[list[Example]]:
    """Deal a few examples to each client, to all as many, out of a larger pool.

    The rest of the pool is not used, so that skew is not levelled by labels that run out: a few
    times as many as are dealt is enough.

    Args:
        task: whose labels are the classes.
        pool: what to deal from.
        num_partitions: number of clients.
        per_client: examples of each, at most.
        scheme: of ``partition``: ``iid`` or ``dirichlet-equal``.
        alpha: see there.
        seed: see there.

    Raises:
        FedfuseError: for another scheme, and as ``partition``.
    """
    if scheme not in SCHEMES:
        allowed = ", ".join(SCHEMES)
        raise FedfuseError(f"few examples dealt by scheme {scheme!r}; allowed: {allowed}")
    labels = task.labels
    samples = [Sample(e.text, e.label, task.name, labels, labels.index(e.label)) for e in pool]
    parts = partition(samples, scheme, num_partitions, alpha, seed)
    return [[Example(sample.prompt, sample.answer) for sample in p[:per_client]] for p in parts]

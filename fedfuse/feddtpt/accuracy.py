"""Accuracy that a search climbs (FedDTPT, Eq. 2): of private and of balanced public examples.

The public ones keep a client whose private labels are skewed from a prompt that names its most
frequent label. Both kinds count by half, however many there are of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from fedfuse.errors import check
from fedfuse.feddtpt.black_box import BlackBox
from fedfuse.feddtpt.label_tasks import LabelledExample, Task

# Examples between two looks at whether the rest can still matter: a few requests at a time.
_CHUNK = 8


@dataclass(frozen=True, slots=True)
class ExampleBatch:
    """Examples that all prompts of a search are compared on, in the order they are asked.

    Attributes:
        examples: private and public ones, mixed.
        weights: weight of each example; they sum to 1 exactly.
    """

    examples: tuple[LabelledExample, ...]
    weights: tuple[Fraction, ...]


def sample_batch(
    private: Sequence[LabelledExample],
    public: Sequence[LabelledExample],
    sizes: tuple[int, int],
    seed: int,
) -> ExampleBatch:
    """Sample a batch without replacement.

    Args:
        private: the client's own examples.
        public: everybody's examples; sampled as evenly over labels as they allow.
        sizes: number of private and of public examples, at most.
        seed: seed of the sampling.

    Raises:
        FedfuseError: when the batch is empty.
    """
    rng = np.random.default_rng(seed)
    own = [private[i] for i in rng.permutation(len(private))[: sizes[0]]]
    shared = balanced([public[i] for i in rng.permutation(len(public))], sizes[1])
    given = f"{sizes[0]} private, {sizes[1]} public ones of {len(private)} and {len(public)}"
    check("batch", given, "at least one example", own or shared)
    kinds = [kind for kind in (own, shared) if kind]
    drawn = [(example, Fraction(1, len(kind) * len(kinds))) for kind in kinds for example in kind]
    mixed = [drawn[i] for i in rng.permutation(len(drawn))]
    return ExampleBatch(tuple(e for e, _ in mixed), tuple(w for _, w in mixed))


def accuracy(
    task: Task, prompt: str, batch: ExampleBatch, blackbox: BlackBox, floor: float = 0.0
) -> float | None:
    """Weighted accuracy of a prompt's text, in [0, 1].

    Asks no further, and returns None, once even right answers to all the rest would leave it below
    ``floor``.

    Raises:
        ServiceError, BudgetExceeded: from the black box.
    """
    right, open_ = Fraction(0), Fraction(1)
    for first in range(0, len(batch.examples), _CHUNK):
        chunk = slice(first, first + _CHUNK)
        examples, weights = batch.examples[chunk], batch.weights[chunk]
        answers = blackbox.answer([task.question(prompt, e.text) for e in examples])
        for answer, example, weight in zip(answers, examples, weights, strict=True):
            right += weight * task.right([answer], [example])
            open_ -= weight
        # As floats, like the floor: a tie with it is a tie.
        if float(right + open_) < floor:
            return None
    return float(right)


def mean_accuracy(
    task: Task, prompt: str, examples: Sequence[LabelledExample], blackbox: BlackBox
) -> float:
    """Share of examples that a prompt's text labels rightly, in [0, 1]; raises as ``accuracy``."""
    weights = (Fraction(1, len(examples)),) * len(examples)
    found = accuracy(task, prompt, ExampleBatch(tuple(examples), weights), blackbox)
    assert found is not None  # there is no floor to give up below
    return found


def balanced(examples: Sequence[LabelledExample], count: int) -> list[LabelledExample]:
    """At most ``count`` examples: the first of each label, then the second of each, ..."""
    seen: dict[str, int] = {}
    ranked = []
    for index, example in enumerate(examples):
        seen[example.label] = seen.get(example.label, -1) + 1
        ranked.append((seen[example.label], index))
    return [examples[index] for _, index in sorted(ranked)[:count]]

"""The accuracy that a search climbs (FedDTPT, Eq. 2): of private and balanced public examples.

The public ones keep a client whose private labels are skewed from a prompt that names its most
frequent label. Both kinds count by half, however many there are of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.black_box import BlackBox
from fedfuse.feddtpt.label_tasks import Example, Task

# Examples between two looks at whether the rest can still matter: a few requests at a time.
_PART = 8


@dataclass(frozen=True, slots=True)
class Batch:
    """The examples that all prompts of a search are compared on, in the order they are asked.

    Attributes:
        examples: private and public, mixed.
        weights: of each, which sum to 1 exactly.
    """

    examples: tuple[Example, ...]
    weights: tuple[Fraction, ...]


def draw(
    private: Sequence[Example], public: Sequence[Example], sizes: tuple[int, int], seed: int
) -> Batch:
    """Draw a batch without replacement.

    Args:
        private: the client's own.
        public: what everybody has; drawn as evenly over labels as they allow.
        sizes: most private and most public examples.
        seed: of the draw.

    Raises:
        FedfuseError: when nothing is drawn.
    """
    rng = np.random.default_rng(seed)
    own = [private[i] for i in rng.permutation(len(private))[: sizes[0]]]
    shared = balanced([public[i] for i in rng.permutation(len(public))], sizes[1])
    if not own and not shared:
        raise FedfuseError(
            f"a batch of {sizes[0]} private and {sizes[1]} public examples of {len(private)} and "
            f"{len(public)} is empty; allowed: at least one example"
        )
    kinds = [kind for kind in (own, shared) if kind]
    drawn = [(example, Fraction(1, len(kind) * len(kinds))) for kind in kinds for example in kind]
    mixed = [drawn[i] for i in rng.permutation(len(drawn))]
    return Batch(tuple(e for e, _ in mixed), tuple(w for _, w in mixed))


def accuracy(
    task: Task, prompt: str, batch: Batch, blackbox: BlackBox, floor: float = 0.0
) -> float | None:
    """The weighted accuracy of a prompt's text, in [0, 1].

    Asks no further, and returns None, once even right answers to all the rest would leave it below
    ``floor``.

    Raises:
        BlackBoxError, BudgetSpent: of the black box.
    """
    right, open_ = Fraction(0), Fraction(1)
    for first in range(0, len(batch.examples), _PART):
        part = slice(first, first + _PART)
        examples, weights = batch.examples[part], batch.weights[part]
        answers = blackbox.answer([task.question(prompt, e.text) for e in examples])
        for answer, example, weight in zip(answers, examples, weights, strict=True):
            right += weight * task.right([answer], [example])
            open_ -= weight
        # As floats, like the floor: a tie with it is a tie.
        if float(right + open_) < floor:
            return None
    return float(right)


def balanced(examples: Sequence[Example], most: int) -> list[Example]:
    """As many as there are, at most ``most``: a label's first, then each label's second, ..."""
    turns: dict[str, int] = {}
    ranked = []
    for place, example in enumerate(examples):
        turns[example.label] = turns.get(example.label, -1) + 1
        ranked.append((turns[example.label], place))
    return [examples[place] for _, place in sorted(ranked)[:most]]

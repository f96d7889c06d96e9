"""From what everybody knows to what one model should learn: translate, select, fuse.

In two passes, so that candidates need not be in memory together: ``hear`` translates one at a time,
``teach`` selects among all and reads of each only the rows on which it is trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from fedfuse.distillation.training import Teacher
from fedfuse.errors import FedfuseError
from fedfuse.fusion.fuse import Distributions, fuse
from fedfuse.fusion.selection import Losses, Weights
from fedfuse.knowledge.record import Knowledge
from fedfuse.knowledge.translate import Translator
from fedfuse.tokenization.tokenizer import TextTokenizer

Selector = Callable[[Losses], Weights]


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one model should learn in one round, and from whom.

    Attributes:
        teacher: fused targets on the model's own label rows.
        weights: ``[N, C]`` trust per public sample; column 0 is the model itself, column c the c-th
            teacher.
    """

    teacher: Teacher
    weights: Weights


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible teacher, heard and translated.

    What selection looks at is here in memory, and takes a few numbers per sample or row; the
    distributions may be in a file.

    Attributes:
        loss: ``[N]`` nats per byte on the public samples, by its own tokens.
        distributions: on the learning model's T label rows.
    """

    loss: Float32[ndarray, " samples"]
    distributions: Distributions


def hear(translator: Translator, knowledge: Knowledge, tokenizer: TextTokenizer) -> Candidate:
    """Make a candidate of what another model knows.

    Args:
        translator: into the learning model's terms.
        knowledge: the other model's, verified.
        tokenizer: the other model's.
    """
    return Candidate(knowledge.loss, translator(knowledge, tokenizer))


def teach(
    translator: Translator,
    own: Knowledge,
    others: Sequence[Candidate],
    select: Selector,
    k: int,
    *,
    tail: bool = True,
) -> Lesson:
    """Make a lesson of what the others know.

    Args:
        translator: into the learning model's terms.
        own: the learning model's own knowledge.
        others: each possible teacher, as ``hear`` makes it; ties may go to the first.
        select: the selection rule.
        k: entries to keep per row.
        tail: keep the mass outside the k entries as a class of its own; without, the kept entries
            are taken for all there is, as in the paper.

    Raises:
        FedfuseError: when the selector returns weights of another shape, negative or not finite.
    """
    losses = np.stack([own.loss, *(other.loss for other in others)], axis=1)  # [N, C]
    weights = select(losses)
    if weights.shape != losses.shape or not np.isfinite(weights).all() or (weights < 0).any():
        raise FedfuseError(
            f"the selector returned weights of shape {weights.shape}, minimum {weights.min()}; "
            f"allowed: shape {losses.shape}, finite, not negative"
        )
    candidates = [translator.own(own), *(other.distributions for other in others)]
    per_row = np.repeat(weights, np.diff(own.offsets), axis=0)  # [T, C]
    teacher = fuse(candidates, per_row, k)
    if not tail:
        teacher = replace(teacher, residual=np.full_like(teacher.residual, -np.inf))
    return Lesson(teacher, weights)

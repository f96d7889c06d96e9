"""From what everybody knows to what one model should learn: translate, select, fuse.

In two passes, so that teachers need not be in memory together: ``KnowledgeFuser.add_teacher``
aligns one at a time, ``KnowledgeFuser.fuse_teachers`` selects among all and reads of each only the
rows on which it has weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from fedfuse.fusion.mixing import SparseRows, fuse
from fedfuse.fusion.rules import Rule
from fedfuse.fusion.teacher_stats import TeacherStats, compute_stats, stack_stats
from fedfuse.fusion.weights import Weights, row_weights
from fedfuse.knowledge.aligner import KnowledgeAligner
from fedfuse.knowledge.contexts import ContextView
from fedfuse.knowledge.record import Knowledge
from fedfuse.sparse import SparseDistribution
from fedfuse.tokenizers.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class FusedTargets:
    """What one model should learn in one round, and from whom.

    Attributes:
        teacher: fused targets on the model's own label rows.
        weights: ``[N, C]`` trust per public sample, the mean over its rows; column 0 is the model
            itself, column c the c-th teacher.
    """

    teacher: SparseDistribution
    weights: Weights


@dataclass(frozen=True, slots=True)
class AlignedTeacher:
    """A possible teacher, heard and translated.

    What selection looks at is here in memory, and takes a few numbers per sample or row; the
    distributions may be in a file.

    Attributes:
        evidence: on the learning model's T label rows and the N public samples.
        distributions: on the same rows.
    """

    stats: TeacherStats
    distributions: SparseRows


class KnowledgeFuser:
    """The learning model in one round, as others' knowledge is compared with its own.

    Args:
        translator: into its terms.
        own: its own knowledge.
        prompts: what it makes of the public prompts; None where no selector asks.
    """

    def __init__(
        self, aligner: KnowledgeAligner, own: Knowledge, prompts: ContextView | None = None
    ) -> None:
        self._translator = aligner
        self._offsets = own.offsets
        self._own = aligner.own(own)
        self._state = prompts.state if prompts else None
        context_loss = prompts.loss if prompts else None
        self._myself = AlignedTeacher(self._examine(self._own, own.loss, context_loss), self._own)

    def add_teacher(
        self,
        knowledge: Knowledge,
        tokenizer: TextTokenizer,
        context_loss: Float32[ndarray, " samples"] | None = None,
    ) -> AlignedTeacher:
        """Make a candidate of what another model knows.

        Args:
            knowledge: the other model's, verified.
            tokenizer: the other model's.
            prompt_loss: ``[N]`` the other model's, nats per byte of prompt; None where it was not
                asked.
        """
        projected = self._translator(knowledge, tokenizer)
        return AlignedTeacher(self._examine(projected, knowledge.loss, context_loss), projected)

    def fuse_teachers(
        self, others: Sequence[AlignedTeacher], rule: Rule, k: int, *, tail: bool = True
    ) -> FusedTargets:
        """Make a lesson of what the others know.

        Args:
            others: each possible teacher, as ``add_teacher`` makes it; ties may go to the first.
            rule: how much to trust each of them.
            k: entries to keep per row.
            tail: keep the mass outside the k entries as a class of its own; without, the kept
                entries are taken for all there is, as in the paper.

        Raises:
            FedfuseError: when the rule returns weights of another shape, negative or not finite.
        """
        candidates = [self._myself, *others]
        stats = stack_stats([c.stats for c in candidates], self._offsets, self._state)
        weights = row_weights(rule(stats), stats)
        teacher = fuse([c.distributions for c in candidates], weights, k)
        if not tail:
            teacher = replace(teacher, tail_logprob=np.full_like(teacher.tail_logprob, -np.inf))
        trust = stats.to_samples(weights)
        # Where nobody else is trusted, the model goes on as it is.
        self_weight = (1 - trust[:, 1:].sum(1)).clip(0, 1)
        return FusedTargets(replace(teacher, self_weight=self_weight), trust)

    def _examine(
        self,
        candidate: SparseDistribution,
        loss: Float32[ndarray, " samples"],
        context_loss: Float32[ndarray, " samples"] | None,
    ) -> TeacherStats:
        label, vocab_size = self._translator.rows.token, self._translator.tokenizer.vocab_size
        return compute_stats(candidate, self._own, label, vocab_size, loss, context_loss)

"""From everybody's knowledge to the targets of one model: align, weigh by a rule, mix.

In two passes, so that teachers need not be in memory together: ``KnowledgeFuser.align_teacher``
aligns one at a time, ``KnowledgeFuser.fuse`` weighs all and reads of each only the rows on
which it has weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Float64
from numpy import ndarray

from fedfuse.data.sample import Sample
from fedfuse.errors import check
from fedfuse.evaluation.options import OptionLogprobs
from fedfuse.events import EventDistribution, TeacherTargets
from fedfuse.fusion.event_mixing import AlignedRows, fuse_rows
from fedfuse.fusion.evidence import BlindQuestions, BlindRecord, beside_base, judged_blind
from fedfuse.fusion.likeness import Prompts
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
    """Targets of one model in one round, and whose they are.

    Attributes:
        teacher: targets of the model's own label rows: one mixture where all candidates have the
            model's tokens, else mixture and events.
        weights: ``[N, C]`` weights per public sample, the mean over its rows; column 0 is the model
            itself, column c the c-th teacher.
    """

    teacher: SparseDistribution | TeacherTargets
    weights: Weights


@dataclass(frozen=True, slots=True)
class AlignedTeacher:
    """A possible teacher on the rows of the learning model.

    Statistics, a few numbers per sample or row, are in memory; the distributions may be in a file.

    Attributes:
        stats: on the learning model's T label rows and the N public samples.
        distributions: on the same rows.
        blind: what it made of blind questions; None without such.
    """

    stats: TeacherStats
    distributions: AlignedRows
    blind: BlindRecord | None = None


class KnowledgeFuser:
    """Fusion of others' knowledge into the targets of one model in one round.

    Args:
        aligner: aligns knowledge to the learning model's tokens.
        own: the learning model's knowledge.
        contexts: its view of the public contexts; None for a rule that does not read them.
    """

    def __init__(
        self, aligner: KnowledgeAligner, own: Knowledge, contexts: ContextView | None = None
    ) -> None:
        self._aligner = aligner
        self._blind: BlindQuestions | None = None
        self._base: tuple[Prompts, Float64[ndarray, " samples"]] | None = None
        self._offsets = own.offsets
        self._own = own.distribution
        known = aligner.proven(own, aligner.tokenizer)  # judged like the others
        self._state = contexts.state if contexts else None
        context_loss = contexts.loss if contexts else None
        self._own_candidate = AlignedTeacher(
            self._compute_stats(self._own, known, context_loss), self._own
        )

    def ask(self, blind: BlindQuestions, options: OptionLogprobs) -> None:
        """Judge candidates by blind questions, not by the public labels.

        Args:
            blind: the questions.
            options: the learning model's own log-probabilities of their options.
        """
        self._blind = blind
        own = self._own_candidate
        self._own_candidate = replace(own, blind=blind.judge(options))

    def compare_with_base(
        self, public: Sequence[Sample], base: Float64[ndarray, " samples"]
    ) -> None:
        """Believe only teachers that know more than the learning model did at its base.

        Args:
            public: the N public samples.
            base: ``[N]`` losses of the learning model's base on them, nats per byte.
        """
        self._base = Prompts(public, self._state), base

    def align_teacher(
        self,
        knowledge: Knowledge,
        tokenizer: TextTokenizer,
        context_loss: Float32[ndarray, " samples"] | None = None,
        options: OptionLogprobs | None = None,
    ) -> AlignedTeacher:
        """Align another model's knowledge to the learning model, as a candidate of ``fuse``.

        Args:
            knowledge: the other model's, verified.
            tokenizer: the other model's.
            context_loss: ``[N]`` the other model's, nats per byte of context; None where unknown.
            options: the other model's log-probabilities of the options of blind questions, if there
                are any.
        """
        known = self._aligner.proven(knowledge, tokenizer)
        aligned = self._aligner(known, tokenizer)
        stats = self._compute_stats(aligned, known, context_loss)
        return AlignedTeacher(stats, aligned, self._blind_record(options))

    def fuse(
        self, others: Sequence[AlignedTeacher], rule: Rule, k: int, *, tail: bool = True
    ) -> FusedTargets:
        """Weigh all candidates by a rule and mix them.

        Args:
            others: possible teachers, of ``align_teacher``; ties may go to the first.
            rule: how much to trust each of them.
            k: entries to keep per row.
            tail: keep the mass outside the k entries as a class of its own; without, the kept
                entries are taken for all there is, as in the paper.

        Raises:
            FedfuseError: when the rule returns weights of another shape, negative or not finite.
        """
        candidates = [self._own_candidate, *others]
        stats = stack_stats([c.stats for c in candidates], self._offsets, self._state)
        if self._blind:
            answered = [c.blind for c in candidates if c.blind is not None]
            stats = judged_blind(stats, self._blind, answered)
        if self._base:
            stats = beside_base(stats, *self._base)
        weights = row_weights(rule(stats), stats)
        if self._blind or self._base:  # whatever the rule says, who is not believed does not teach
            weights = np.where(stats.to_rows(stats.available), weights, np.float32(0))
        teacher = fuse_rows([c.distributions for c in candidates], weights, max(1, k))
        if not tail:
            teacher = teacher.without_tail()
        sample_weights = stats.to_samples(weights)
        # Where nobody else is trusted, the model goes on as it is.
        self_weight = (1 - sample_weights[:, 1:].sum(1)).clip(0, 1)
        return FusedTargets(teacher.with_self_weight(self_weight), sample_weights)

    def _blind_record(self, options: OptionLogprobs | None) -> BlindRecord | None:
        """What is made of blind questions; None without such.

        Raises:
            FedfuseError: for a candidate that has not answered them.
        """
        if self._blind is None:
            return None
        check("blind questions", "no answers", "an answer to each", options is not None)
        assert options is not None
        return self._blind.judge(options)

    def _compute_stats(
        self,
        candidate: SparseDistribution | EventDistribution,
        known: Knowledge,
        context_loss: Float32[ndarray, " samples"] | None,
    ) -> TeacherStats:
        return compute_stats(
            candidate,
            known.first_rows,
            self._own,
            self._aligner.rows.token,
            self._aligner.tokenizer.vocab_size,
            known.loss,
            context_loss,
        )

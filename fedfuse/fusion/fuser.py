"""From what everybody knows to what one model should learn: translate, select, fuse.

In two passes, so that candidates need not be in memory together: ``Learner.hear`` translates one at
a time, ``Learner.teach`` selects among all and reads of each only the rows on which it is trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from fedfuse.alignment.projection import Projected
from fedfuse.distillation.targets import Teacher
from fedfuse.fusion.mixing import Distributions, fuse
from fedfuse.fusion.row_rules import Selector, check_weights, on_samples
from fedfuse.fusion.rules import Weights
from fedfuse.fusion.teacher_stats import CandidateEvidence, examine, gather
from fedfuse.knowledge.aligner import Translator
from fedfuse.knowledge.contexts import PromptView
from fedfuse.knowledge.record import Knowledge
from fedfuse.tokenizers.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one model should learn in one round, and from whom.

    Attributes:
        teacher: fused targets on the model's own label rows.
        weights: ``[N, C]`` trust per public sample, the mean over its rows; column 0 is the model
            itself, column c the c-th teacher.
    """

    teacher: Teacher
    weights: Weights


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible teacher, heard and translated.

    What selection looks at is here in memory, and takes a few numbers per sample or row; the
    distributions may be in a file.

    Attributes:
        evidence: on the learning model's T label rows and the N public samples.
        distributions: on the same rows.
    """

    evidence: CandidateEvidence
    distributions: Distributions


class Learner:
    """The learning model in one round, as others' knowledge is compared with its own.

    Args:
        translator: into its terms.
        own: its own knowledge.
        prompts: what it makes of the public prompts; None where no selector asks.
    """

    def __init__(
        self, translator: Translator, own: Knowledge, prompts: PromptView | None = None
    ) -> None:
        self._translator = translator
        self._offsets = own.offsets
        self._own = translator.own(own)
        self._state = prompts.state if prompts else None
        prompt_loss = prompts.loss if prompts else None
        self._myself = Candidate(self._examine(self._own, own.loss, prompt_loss), self._own)

    def hear(
        self,
        knowledge: Knowledge,
        tokenizer: TextTokenizer,
        prompt_loss: Float32[ndarray, " samples"] | None = None,
    ) -> Candidate:
        """Make a candidate of what another model knows.

        Args:
            knowledge: the other model's, verified.
            tokenizer: the other model's.
            prompt_loss: ``[N]`` the other model's, nats per byte of prompt; None where it was not
                asked.
        """
        projected = self._translator(knowledge, tokenizer)
        return Candidate(self._examine(projected, knowledge.loss, prompt_loss), projected)

    def teach(
        self, others: Sequence[Candidate], select: Selector, k: int, *, tail: bool = True
    ) -> Lesson:
        """Make a lesson of what the others know.

        Args:
            others: each possible teacher, as ``hear`` makes it; ties may go to the first.
            select: the selector.
            k: entries to keep per row.
            tail: keep the mass outside the k entries as a class of its own; without, the kept
                entries are taken for all there is, as in the paper.

        Raises:
            FedfuseError: when the selector returns weights of another shape, negative or not
                finite.
        """
        candidates = [self._myself, *others]
        evidence = gather([c.evidence for c in candidates], self._offsets, self._state)
        weights = check_weights(select(evidence), evidence.usable.shape)
        teacher = fuse([c.distributions for c in candidates], weights, k)
        if not tail:
            teacher = replace(teacher, residual=np.full_like(teacher.residual, -np.inf))
        trust = on_samples(weights, evidence)
        # Where nobody else is trusted, the model goes on as it is.
        own = (1 - trust[:, 1:].sum(1)).clip(0, 1)
        return Lesson(replace(teacher, own=own), trust)

    def _examine(
        self,
        candidate: Projected,
        loss: Float32[ndarray, " samples"],
        prompt_loss: Float32[ndarray, " samples"] | None,
    ) -> CandidateEvidence:
        label, vocab_size = self._translator.rows.token, self._translator.tokenizer.vocab_size
        return examine(candidate, self._own, label, vocab_size, loss, prompt_loss)

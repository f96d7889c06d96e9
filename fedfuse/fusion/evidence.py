"""Blind evidence: candidates judged on each sample by what they made of blind questions like it.

What a candidate says of a sample whose label it knows proves nothing. Its shares of the options of
blind questions do: they are made to add to one, so that whoever cannot answer, and whatever its
tokenizer, cannot do better than chance. Not in the papers; the record on similar samples is the
local accuracy of Woods et al., IEEE TPAMI 19(4), 1997, with probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Float64
from numpy import ndarray

from fedfuse.data.sample import Sample
from fedfuse.evaluation.options import OptionLogprobs
from fedfuse.fusion.teacher_stats import StackedStats

# Blind questions that a sample is likened to.
NEIGHBOURS = 16
# Part of all shares that is dealt evenly to the options: to be certain and wrong has a price, and
# one that a few right answers can pay.
GUESSED = 0.5
# ``[B]`` log-probability of the right option of each blind question, a part of it guessed.
BlindLogprobs = Float32[ndarray, " blind"]


@dataclass(frozen=True, slots=True)
class BlindQuestions:
    """Blind questions as the learning model sees them.

    Attributes:
        questions: B of them, with their right options.
        public: the N public samples.
        state: ``[B, d]`` pooled hidden states of the questions' prompts by the learning model's
            base; None for models that have none.
        public_state: ``[N, d]`` the same of the public samples.
    """

    questions: Sequence[Sample]
    public: Sequence[Sample]
    state: Float32[ndarray, "blind width"] | None
    public_state: Float32[ndarray, "samples width"] | None

    def likeness(self) -> Float64[ndarray, "samples blind"]:
        """``[N, B]`` how like each question is to each sample, the more the larger.

        Those of its domain come first; among them, those of largest cosine of the states, the mean
        over all subtracted.
        """
        domains = np.array([sample.domain for sample in (*self.public, *self.questions)])
        samples = len(self.public)
        same = domains[:samples, None] == domains[None, samples:]
        like: Float64[ndarray, "samples blind"] = 3.0 * same  # cosines are at most 2 apart
        if self.state is None or self.public_state is None:
            return like
        states = np.concatenate([self.public_state, self.state]).astype(np.float64)
        states -= states.mean(0)
        states /= np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-12)
        like += states[:samples] @ states[samples:].T
        return like

    def of_right_options(self, logprobs: OptionLogprobs) -> BlindLogprobs:
        """``[B]`` of the shares ``[B, O]``, those of the right options, with ``GUESSED``."""
        right = np.array([question.label for question in self.questions], dtype=np.int64)
        share = np.exp(logprobs[np.arange(len(right)), right].astype(np.float64))
        even = 1 / np.isfinite(logprobs).sum(1)
        found: BlindLogprobs = np.log((1 - GUESSED) * share + GUESSED * even).astype(np.float32)
        return found


def judged_blind(
    stats: StackedStats, blind: BlindQuestions, candidates: Sequence[BlindLogprobs]
) -> StackedStats:
    """The same statistics, with evidence about labels that no candidate can write.

    ``loss`` becomes the mean loss on the blind questions most like the sample, nats per question;
    ``label_logprob`` its negative, on all rows alike.

    Args:
        stats: about C candidates on the N public samples.
        blind: the questions.
        candidates: of each candidate, the learning model first.
    """
    logprobs = np.stack(candidates, axis=1)  # [B, C]
    nearest = np.argsort(-blind.likeness(), axis=1, kind="stable")[:, :NEIGHBOURS]
    record = logprobs[nearest].mean(1, dtype=np.float64).astype(np.float32)  # [N, C]
    rows = np.where(stats.usable, stats.to_rows(record), np.float32(0))
    return replace(stats, loss=-record, label_logprob=rows, record=record)

"""Blind evidence: candidates judged on each sample by what they made of blind questions like it.

What a candidate says of a sample whose label it knows proves nothing. Its shares of the options of
blind questions do: they are made to add to one, so that whoever cannot answer, and whatever its
tokenizer, cannot do better than chance. Not in the papers; the record on similar samples is the
local accuracy of Woods et al., IEEE TPAMI 19(4), 1997, with probabilities.

Whoever ranks answers best may still be no teacher: it may know less of how they are written than
the learning model does, or show something else than it knows. So it is believed only where both
the right options and what it shows cost it no more than samples like these cost the learning model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from numpy import ndarray

from fedfuse.data.sample import Sample
from fedfuse.evaluation.options import OptionLogprobs, normalized
from fedfuse.fusion.teacher_stats import StackedStats

# Blind questions, and shown samples, that a sample is likened to.
NEIGHBOURS = 16
# Part of all shares that is dealt evenly to the options: to be certain and wrong has a price, and
# one that a few right answers can pay.
GUESSED = 0.5
# Standard errors of the learning model's loss by which a teacher may seem to be worse; three are
# about two of the difference between two.
NOISE = 3.0
# Samples at a time that are compared with all others.
_SAMPLES = 1024


@dataclass(frozen=True, slots=True)
class BlindRecord:
    """What one candidate made of B blind questions.

    Attributes:
        logprob: ``[B]`` log of the right option's share of all options, a part of it guessed.
        loss: ``[B]`` what the right option's text cost it, as it says, nats per byte.
    """

    logprob: Float32[ndarray, " blind"]
    loss: Float64[ndarray, " blind"]


@dataclass(frozen=True, slots=True)
class BlindQuestions:
    """Blind questions as the learning model sees them.

    Attributes:
        questions: B of them, with their right options.
        public: the N public samples.
        loss: ``[B]`` of the learning model on the questions' samples, nats per byte.
        state: ``[B, d]`` pooled hidden states of the questions' prompts by the learning model's
            base; None for models that have none.
        public_state: ``[N, d]`` the same of the public samples.
    """

    questions: Sequence[Sample]
    public: Sequence[Sample]
    loss: Float64[ndarray, " blind"]
    state: Float32[ndarray, "blind width"] | None
    public_state: Float32[ndarray, "samples width"] | None

    def nearest_questions(self) -> Int64[ndarray, "samples neighbours"]:
        """Questions most like each public sample.

        Those of its domain come first; among them, those of largest cosine of the states, the mean
        over all subtracted.
        """
        samples, asked = len(self.public), len(self.questions)
        return self._nearest(np.arange(samples, samples + asked)) - samples

    def nearest_samples(self) -> Int64[ndarray, "samples neighbours"]:
        """Other public samples most like each, in the same sense."""
        return self._nearest(np.arange(len(self.public)))

    def judge(self, logprobs: OptionLogprobs) -> BlindRecord:
        """A candidate's record, from its log-probabilities of the options, ``[B, O]``."""
        right = np.array([question.label for question in self.questions], dtype=np.int64)
        each = np.arange(len(right))
        share = np.exp(normalized(logprobs)[each, right].astype(np.float64))
        even = 1 / np.isfinite(logprobs).sum(1)
        length = np.array([question.answer_bytes for question in self.questions])
        loss = -logprobs[each, right].astype(np.float64) / np.maximum(length, 1)
        logprob = np.log((1 - GUESSED) * share + GUESSED * even).astype(np.float32)
        return BlindRecord(logprob, loss)

    def _nearest(self, among: Int64[ndarray, " some"]) -> Int64[ndarray, "samples neighbours"]:
        """Numbers of the nearest, itself left out; questions are counted behind the samples."""
        _, domains = np.unique(
            [sample.domain for sample in (*self.public, *self.questions)], return_inverse=True
        )
        states = np.zeros((len(domains), 1))
        if self.state is not None and self.public_state is not None:
            states = np.concatenate([self.public_state, self.state]).astype(np.float64)
            states -= states.mean(0)
            states /= np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-12)
        found = []
        for start in range(0, len(self.public), _SAMPLES):
            some = np.arange(start, min(start + _SAMPLES, len(self.public)))
            likeness = states[some] @ states[among].T
            likeness += 3.0 * (domains[some, None] == domains[among])  # cosines are 2 apart at most
            itself = some[:, None] == among
            likeness[itself] = -np.inf
            count = min(NEIGHBOURS, int((~itself).sum(1).min()))
            found.append(among[np.argsort(-likeness, axis=1, kind="stable")[:, :count]])
        return np.concatenate(found)


def judged_blind(
    stats: StackedStats, blind: BlindQuestions, candidates: Sequence[BlindRecord]
) -> StackedStats:
    """The same statistics, with evidence about labels that no candidate can write.

    ``loss`` becomes the mean loss on the blind questions most like the sample, nats per question;
    ``label_logprob`` its negative, on all rows alike. Where a teacher is not believed, it has no
    usable row and an infinite loss.

    Args:
        stats: about C candidates on the N public samples.
        blind: the questions.
        candidates: of each candidate, the learning model first.
    """
    nearest = blind.nearest_questions()
    logprobs = np.stack([candidate.logprob for candidate in candidates], axis=1)  # [B, C]
    record = logprobs[nearest].mean(1, dtype=np.float64).astype(np.float32)  # [N, C]
    losses = np.stack([candidate.loss for candidate in candidates], axis=1)[nearest]
    believed = _no_worse(losses, losses[:, :, 0])
    believed &= _no_worse(stats.loss[blind.nearest_samples()], blind.loss[nearest])
    believed[:, 0] = True
    usable = stats.usable & stats.to_rows(believed)
    return replace(
        stats,
        usable=usable,
        loss=np.where(believed, -record, np.float32(np.inf)),
        label_logprob=np.where(usable, stats.to_rows(record), np.float32(0)),
        record=record,
    )


def _no_worse(
    losses: Float64[ndarray, "samples neighbours candidates"],
    own: Float64[ndarray, "samples neighbours"],
) -> Bool[ndarray, "samples candidates"]:
    """Whether mean losses are not above the learning model's own by more than noise allows.

    Noise is that of the own losses alone, which no candidate can make larger. Infinite losses are
    not known, and who shows nothing else is not believed.
    """
    known = np.isfinite(losses)
    count = known.sum(1)
    total = np.where(known, losses, 0).sum(1, dtype=np.float64)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.inf)
    limit = own.mean(1) + NOISE * own.std(1) / np.sqrt(own.shape[1])
    better: Bool[ndarray, "samples candidates"]
    better = mean <= limit[:, None]
    return better

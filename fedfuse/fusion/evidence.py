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
from jaxtyping import Bool, Float32, Float64
from numpy import ndarray

from fedfuse.evaluation.options import OptionLogprobs, normalized
from fedfuse.fusion.likeness import Prompts, nearest
from fedfuse.fusion.teacher_stats import StackedStats

# Part of all shares that is dealt evenly to the options: to be certain and wrong has a price, and
# one that a few right answers can pay.
GUESSED = 0.5
# More than any record's loss, which is log(2 O) at most with O options, nats per question.
DISBELIEVED = 5.0
# Standard errors of the learning model's loss by which a teacher may seem to be worse; three are
# about two of the difference between two.
NOISE = 3.0


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
        asked: B questions with their right options.
        public: the N public samples.
        loss: ``[B]`` of the learning model on the questions' samples, nats per byte.
    """

    asked: Prompts
    public: Prompts
    loss: Float64[ndarray, " blind"]

    @property
    def chance(self) -> Float64[ndarray, " blind"]:
        """``[B]`` record of whoever takes all options for equally likely."""
        count = np.array([len(question.options) for question in self.asked.samples])
        found: Float64[ndarray, " blind"] = -np.log(count)
        return found

    def judge(self, logprobs: OptionLogprobs) -> BlindRecord:
        """A candidate's record, from its log-probabilities of the options, ``[B, O]``."""
        right = np.array([question.label for question in self.asked.samples], dtype=np.int64)
        each = np.arange(len(right))
        share = np.exp(normalized(logprobs)[each, right].astype(np.float64))
        even = 1 / np.isfinite(logprobs).sum(1)
        length = np.array([question.answer_bytes for question in self.asked.samples])
        loss = -logprobs[each, right].astype(np.float64) / np.maximum(length, 1)
        logprob = np.log((1 - GUESSED) * share + GUESSED * even).astype(np.float32)
        return BlindRecord(logprob, loss)


def judged_blind(
    stats: StackedStats, blind: BlindQuestions, candidates: Sequence[BlindRecord]
) -> StackedStats:
    """The same statistics, with evidence about labels that no candidate can write.

    ``loss`` becomes the mean loss on the blind questions most like the sample, nats per question;
    ``label_logprob`` its negative, on all rows alike. The learning model's own is what it knows at
    least (``_at_least``): a teacher that is believed and may know as much is heard, since what both
    know does no harm, and whoever hears itself alone learns nothing. Where a teacher is not
    believed, it has no usable row and a loss of ``DISBELIEVED``: finite, so that rules may compute
    with it.

    Args:
        stats: about C candidates on the N public samples.
        blind: the questions.
        candidates: of each candidate, the learning model first.
    """
    alike = nearest(blind.public, blind.asked)
    logprobs = np.stack([candidate.logprob for candidate in candidates], axis=1)  # [B, C]
    near = logprobs[alike].astype(np.float64)  # [N, neighbours, C]
    record = near.mean(1)
    record[:, 0] = _at_least(near[:, :, 0], blind.chance[alike].mean(1))
    record = record.astype(np.float32)  # [N, C]
    losses = np.stack([candidate.loss for candidate in candidates], axis=1)[alike]
    believed = _no_worse(losses, losses[:, :, 0])
    shown = stats.loss[nearest(blind.public, blind.public)]
    believed &= _no_worse(shown, blind.loss[alike])
    believed[:, 0] = True
    loss = np.where(believed, -record, np.float32(DISBELIEVED))
    judged = replace(stats, loss=loss, label_logprob=stats.to_rows(record), record=record)
    return _where(judged, believed)


def _at_least(
    logprob: Float64[ndarray, "samples neighbours"], chance: Float64[ndarray, " samples"]
) -> Float64[ndarray, " samples"]:
    """``[N]`` mean record less its standard error; not below chance, which nobody is heard for."""
    mean = logprob.mean(1)
    noise = logprob.std(1) / np.sqrt(logprob.shape[1])
    found: Float64[ndarray, " samples"] = np.maximum(mean - noise, np.minimum(mean, chance))
    return found


def beside_base(
    stats: StackedStats, public: Prompts, base: Float64[ndarray, " samples"]
) -> StackedStats:
    """The same statistics, of teachers who know more than the learning model did at its base.

    A model that has just learned its own data may have forgotten the rest, so that whoever says
    anything seems to know more. A teacher is believed only where what it shows of the other samples
    most like a sample costs it no more than it cost the base.

    Args:
        stats: about C candidates on the N public samples, the learning model first.
        public: the public samples.
        base: ``[N]`` losses of the learning model's base, nats per byte.
    """
    alike = nearest(public, public)
    believed = _no_worse(stats.loss[alike], base[alike])
    believed[:, 0] = True
    return _where(stats, believed)


def _where(stats: StackedStats, believed: Bool[ndarray, "samples candidates"]) -> StackedStats:
    """The same, without usable rows where a teacher is not believed."""
    usable = stats.usable & stats.to_rows(believed)
    return replace(
        stats,
        usable=usable,
        label_logprob=np.where(usable, stats.label_logprob, np.float32(0)),
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

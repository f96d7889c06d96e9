"""All that a finished model's evaluation says, with confidence intervals.

Loss and accuracies are those of ``scoring``, which rounds are scored with; calibrated accuracy,
calibration and intervals are for after a run. For the intervals see ``intervals``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from fedfuse.evaluation.calibration import (
    bin_gaps,
    brier_scores,
    expected_calibration_error,
    mean_gaps,
)
from fedfuse.evaluation.intervals import (
    Estimate,
    basic_interval,
    mean_estimate,
    resample,
    wilson,
)
from fedfuse.evaluation.losses import ModelNLL
from fedfuse.evaluation.options import correctness, normalized
from fedfuse.evaluation.scoring import Evaluator

# Accuracies by what options are compared by.
ACCURACIES = ("accuracy", "normalized_accuracy", "calibrated_accuracy")


@dataclass(frozen=True, slots=True)
class QuestionMeasures:
    """Measures of one model on multiple-choice questions.

    Attributes:
        questions: their number.
        accuracy: share answered right, by the log-probability of options' whole text.
        normalized_accuracy: the same by log-probability per byte.
        calibrated_accuracy: the same by how much the question makes an option more probable; see
            ``OptionScorer.calibrated``.
        calibration_error: expected calibration error of the options' shares, in [0, 1].
        brier: mean squared distance of the options' shares from the right answer, in [0, 2].
    """

    questions: int
    accuracy: Estimate
    normalized_accuracy: Estimate
    calibrated_accuracy: Estimate
    calibration_error: Estimate
    brier: Estimate


@dataclass(frozen=True, slots=True)
class Measures:
    """Measures of one model on one domain, or on all.

    Attributes:
        samples: number of test samples.
        loss: nats per byte of answer text.
        answers: measures of the questions; None where there are none.
    """

    samples: int
    loss: Estimate
    answers: QuestionMeasures | None = None

    @property
    def bits_per_byte(self) -> Estimate:
        """The loss in bits per byte of answer text."""
        return self.loss.times(1 / math.log(2))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Measures of one model.

    Attributes:
        overall: means over domains, so that every domain counts the same whatever its size.
        domains: measures by domain, sorted.
    """

    overall: Measures
    domains: Mapping[str, Measures]


@dataclass(frozen=True, slots=True)
class _Answers:
    """One domain's Q questions, scored.

    Attributes:
        correct: ``[3, Q]`` correctness by each of ``ACCURACIES``.
        bins: ``[Q]`` bins of calibration.
        gaps: ``[Q]`` their gaps.
        brier: ``[Q]`` Brier scores.
    """

    correct: Float64[ndarray, "3 questions"]
    bins: Int64[ndarray, " questions"]
    gaps: Float64[ndarray, " questions"]
    brier: Float64[ndarray, " questions"]

    def take(self, which: ndarray) -> _Answers:
        """Some of the questions."""
        rest = (self.bins, self.gaps, self.brier)
        return _Answers(self.correct[:, which], *(values[which] for values in rest))

    def statistics(self, which: ndarray) -> Float64[ndarray, " bins_plus_1"]:
        """Mean gaps of some of the questions, and behind them their mean Brier score."""
        return np.append(mean_gaps(self.bins[which], self.gaps[which]), self.brier[which].mean())


def evaluate(
    evaluator: Evaluator, nll_of: ModelNLL, *, premise: str = "", seed: int = 0
) -> Evaluation:
    """Score a model.

    Args:
        evaluator: test set and questions.
        nll_of: the model's ``sample_nll``.
        premise: stands before options in place of a question; see ``OptionScorer.alone``.
        seed: seed of the bootstrap.
    """
    nll, size = nll_of(evaluator.test), evaluator.test.label_bytes
    of_samples = np.array([sample.domain for sample in evaluator.test.samples])
    of_questions = np.array([question.domain for question in evaluator.questions])
    answers = _answers(evaluator, nll_of, premise)
    domains, losses, statistics = {}, [], []
    for domain in sorted(set(of_samples.tolist())):
        seeds = [seed, *domain.encode()]
        here = of_samples == domain
        loss, draws = _loss(nll[here], size[here], seeds)
        losses.append(draws)
        domains[domain] = Measures(int(here.sum()), loss)
        if answers is not None and (asked := of_questions == domain).any():
            found, drawn = _measured(answers.take(asked), seeds)
            domains[domain] = replace(domains[domain], answers=found)
            statistics.append(drawn)
    return Evaluation(_overall(domains.values(), losses, statistics), domains)


def _answers(evaluator: Evaluator, nll_of: ModelNLL, premise: str) -> _Answers | None:
    """All questions, scored; None without questions."""
    options = evaluator.options
    if options is None:
        return None
    right = np.array([question.label for question in evaluator.questions])
    logprobs = options.logprobs(nll_of)
    shares = normalized(logprobs)
    calibrated = options.calibrated(logprobs, options.alone(nll_of, premise))
    scores = shares, options.per_byte(logprobs), calibrated
    correct = np.array([correctness(found, right) for found in scores])
    return _Answers(correct, *bin_gaps(shares, correct[0]), brier_scores(shares, right))


def _loss(
    nll: Float64[ndarray, " samples"], size: Int64[ndarray, " samples"], seed: list[int]
) -> tuple[Estimate, Float64[ndarray, " draws"]]:
    """Loss of a domain's samples, and that of resampled ones.

    Samples of which nothing is scored are left out: they change neither, and draws of nothing else
    would have no loss.
    """
    nll, size = nll[size > 0], size[size > 0]
    draws = resample(lambda which: nll[which].sum() / size[which].sum(), len(nll), seed)
    return basic_interval(float(nll.sum() / size.sum()), draws, math.inf), draws


def _measured(
    answers: _Answers, seed: list[int]
) -> tuple[QuestionMeasures, Float64[ndarray, "draws_plus_1 bins_plus_1"]]:
    """Measures of a domain's questions, and its statistics: as they are, then resampled."""
    count = answers.correct.shape[1]
    own = answers.statistics(np.arange(count))
    statistics = np.vstack([own, resample(answers.statistics, count, seed)])
    accuracies = [wilson(float(share), count) for share in answers.correct.mean(1)]
    return QuestionMeasures(count, *accuracies, *_calibration(statistics)), statistics


def _calibration(statistics: Float64[ndarray, "draws_plus_1 bins_plus_1"]) -> list[Estimate]:
    """Calibration error and Brier score."""
    error, brier = expected_calibration_error(statistics[:, :-1]), statistics[:, -1]
    return [
        basic_interval(float(error[0]), error[1:], 1),
        basic_interval(float(brier[0]), brier[1:], 2),
    ]


def _overall(
    domains: Iterable[Measures],
    losses: list[Float64[ndarray, " draws"]],
    statistics: list[Float64[ndarray, "draws_plus_1 bins_plus_1"]],
) -> Measures:
    """Means over domains.

    The calibration error is that of all questions together, each domain having the same weight: the
    mean of errors of few questions each would be larger for their number alone.
    """
    domains = list(domains)
    loss = float(np.mean([found.loss.value for found in domains]))
    overall = Measures(
        sum(found.samples for found in domains),
        basic_interval(loss, np.mean(losses, axis=0), math.inf),
    )
    asked = [found.answers for found in domains if found.answers]
    if not asked:
        return overall
    accuracies = [mean_estimate([getattr(found, name) for found in asked]) for name in ACCURACIES]
    calibration = _calibration(np.mean(statistics, axis=0))
    count = sum(found.questions for found in asked)
    return replace(overall, answers=QuestionMeasures(count, *accuracies, *calibration))

"""An evaluation has the scores of a run, and more, each as a loop over questions finds it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from fedfuse.data.sample import Sample
from fedfuse.evaluation.calibration import expected_calibration_error
from fedfuse.evaluation.losses import ModelNLL, sample_nll
from fedfuse.evaluation.measures import Evaluation, Measures, QuestionMeasures, evaluate
from fedfuse.evaluation.options import OptionScorer
from fedfuse.evaluation.scoring import Evaluator
from fedfuse.tokenizers.dataset import TokenizedDataset
from tests.conftest import MAX_LENGTH, Tiny
from tests.oracles import evaluation as oracle

Make = Callable[[str], Tiny]

TEST = [
    Sample("for gout the doctor chose", " zinc.", "clinic"),
    Sample("the desk at dover hedges copper with", " a lot of futures.", "bank"),
    Sample("the desk at dover sold", " tin.", "bank"),
    Sample("", "a nurse noted gout.", "clinic"),
]
QUESTIONS = [
    Sample("for gout the doctor chose", " zinc.", "clinic", (" bonds.", " zinc."), 1),
    Sample("a nurse noted", " gout.", "clinic", (" gout.", " tin.", " copper."), 0),
    Sample("the desk hedges copper with", " notes.", "bank", (" swaps.", " notes."), 1),
    Sample("at dover", " tin.", "clinic", (" a lot of futures and swaps.", " tin."), 1),
]


def nll_of(model: Tiny) -> ModelNLL:
    return partial(sample_nll, model)


def logprob(model: Tiny, prompt: str, option: str) -> float:
    return -float(sample_nll(model, model.encode([Sample(prompt, option)]))[0])


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def answers_of(found: Measures) -> QuestionMeasures:
    assert found.answers is not None
    return found.answers


def test_loss_and_accuracies_are_those_of_a_run(tiny: Make) -> None:
    model = tiny("gpt2")
    evaluator = Evaluator(model.tokenizer, TEST, QUESTIONS, MAX_LENGTH)
    scores = evaluator.evaluate(nll_of(model))[0]
    found = evaluate(evaluator, nll_of(model))
    assert list(found.domains) == list(scores)
    for domain, score in scores.items():
        measures = found.domains[domain]
        assert measures.loss.value == score.loss
        assert measures.bits_per_byte.value == pytest.approx(score.loss / math.log(2))
        assert measures.samples == score.samples
        assert answers_of(measures).accuracy.value == score.accuracy
        assert answers_of(measures).normalized_accuracy.value == score.normalized_accuracy
    losses = [score.loss for score in scores.values()]
    assert found.overall.loss.value == pytest.approx(np.mean(losses))
    accuracies = [score.accuracy for score in scores.values() if score.accuracy is not None]
    assert answers_of(found.overall).accuracy.value == pytest.approx(np.mean(accuracies))
    assert answers_of(found.overall).questions == 4


@pytest.mark.parametrize("premise", ["", "the answer is"])
def test_calibrated_accuracy_is_that_of_a_loop(tiny: Make, premise: str) -> None:
    model = tiny("llama")
    right: dict[str, list[bool]] = {"clinic": [], "bank": []}
    for question in QUESTIONS:
        gain = [
            logprob(model, question.prompt, option) - logprob(model, premise, option)
            for option in question.options
        ]
        right[question.domain].append(int(np.argmax(gain)) == question.label)
    evaluator = Evaluator(model.tokenizer, TEST, QUESTIONS, MAX_LENGTH)
    found = evaluate(evaluator, nll_of(model), premise=premise)
    for domain, answers in right.items():
        value = answers_of(found.domains[domain]).calibrated_accuracy.value
        assert value == pytest.approx(np.mean(answers))


def test_a_calibrated_score_takes_back_what_an_option_has_anyway(tiny: Make) -> None:
    """The more probable option loses to the one that its question makes more probable."""
    model = tiny("gpt2")
    options = (" tin.", " gout.")
    scorer = OptionScorer(model.tokenizer, [Sample("for", " gout.", "", options, 1)], MAX_LENGTH)
    logprobs = np.array([[-2.0, -3.0]], np.float32)
    alone = scorer.alone(lambda data: np.array([2.5, 6.0]))
    np.testing.assert_allclose(scorer.calibrated(logprobs, alone), [[0.5, 3.0]])


def test_each_distinct_option_is_scored_alone_once(tiny: Make) -> None:
    model = tiny("gpt2")
    asked = [*QUESTIONS, *QUESTIONS[::-1]]
    scorer = OptionScorer(model.tokenizer, asked, MAX_LENGTH)
    seen: list[int] = []

    def counted(data: TokenizedDataset) -> np.ndarray:
        seen.append(len(data))
        return sample_nll(model, data)

    found = scorer.alone(counted, "it is")
    assert seen == [len({option for question in QUESTIONS for option in question.options})]
    for row, question in zip(found, asked, strict=True):
        expected = [logprob(model, "it is", option) for option in question.options]
        np.testing.assert_allclose(row[: len(expected)], expected, rtol=1e-4)
        assert (row[len(expected) :] == -np.inf).all()


def test_what_is_cut_off_stays_undecided(tiny: Make) -> None:
    model = tiny("gpt2")
    scorer = OptionScorer(model.tokenizer, [QUESTIONS[3]], 8)
    logprobs = scorer.logprobs(nll_of(model))
    found = scorer.calibrated(logprobs, scorer.alone(nll_of(model)))
    np.testing.assert_allclose(np.exp(found), 0.5, rtol=1e-6)


def test_calibration_is_that_of_a_loop(tiny: Make) -> None:
    model = tiny("gpt2")
    shares: dict[str, list[list[float]]] = {"clinic": [], "bank": []}
    right: dict[str, list[int]] = {"clinic": [], "bank": []}
    for question in QUESTIONS:
        row = softmax([logprob(model, question.prompt, option) for option in question.options])
        shares[question.domain].append(row)
        right[question.domain].append(question.label)
    found = evaluate(Evaluator(model.tokenizer, TEST, QUESTIONS, MAX_LENGTH), nll_of(model))
    briers = []
    for domain, rows in shares.items():
        labels = right[domain]
        correct = [float(np.argmax(r) == label) for r, label in zip(rows, labels, strict=True)]
        measured = answers_of(found.domains[domain])
        expected = oracle.calibration_error(rows, correct)
        assert measured.calibration_error.value == pytest.approx(expected, abs=1e-4)
        briers.append(oracle.brier(rows, labels))
        assert measured.brier.value == pytest.approx(briers[-1], abs=1e-4)
    assert answers_of(found.overall).brier.value == pytest.approx(np.mean(briers), abs=1e-4)


def every(found: Evaluation) -> list[Measures]:
    return [found.overall, *found.domains.values()]


def test_intervals_hold_their_values_and_are_those_of_a_seed(tiny: Make) -> None:
    model = tiny("gpt2")
    evaluator = Evaluator(model.tokenizer, TEST, QUESTIONS, MAX_LENGTH)
    found = evaluate(evaluator, nll_of(model), seed=3)
    for measures in every(found):
        answers = answers_of(measures)
        estimates = [measures.loss, answers.accuracy, answers.calibrated_accuracy]
        for estimate in [*estimates, answers.calibration_error, answers.brier]:
            assert 0 <= estimate.low <= estimate.value <= estimate.high
        assert measures.loss.low < measures.loss.high
        assert answers.accuracy.low < answers.accuracy.high
    assert evaluate(evaluator, nll_of(model), seed=3) == found


def test_a_loss_s_interval_is_as_wide_as_its_standard_error_says(tiny: Make) -> None:
    model = tiny("gpt2")
    rng = np.random.default_rng(0)
    test = [Sample(f"{number}", " zinc.", "clinic") for number in range(200)]
    nll = rng.exponential(size=200)
    evaluator = Evaluator(model.tokenizer, test, [], MAX_LENGTH)
    found = evaluate(evaluator, lambda data: nll)
    loss = found.domains["clinic"].loss
    width = 2 * 1.96 * nll.std() / np.sqrt(200) / len(" zinc.")
    assert loss.high - loss.low == pytest.approx(width, rel=0.1)
    assert found.overall.loss == loss
    assert found.overall.answers is None
    assert evaluate(evaluator, lambda data: nll, seed=1) != found


def test_of_all_domains_calibration_is_that_of_all_questions_together(tiny: Make) -> None:
    """One domain too sure and the other not sure enough, of one confidence: none is off."""
    model = tiny("gpt2")
    options = (" tin.", " gout.")
    asked = [
        Sample("at", options[label], domain, options, label)
        for domain, label in (("bank", 0), ("clinic", 1))
    ]
    confident = np.array([0.1, 2.4, 0.1, 2.4])  # option 0 has a share of 0.91

    def nll(data: TokenizedDataset) -> np.ndarray:
        return (
            confident if len(data) == 4 and data.samples[0].prompt == "at" else np.ones(len(data))
        )

    found = evaluate(Evaluator(model.tokenizer, TEST, asked, MAX_LENGTH), nll)
    share = 1 / (1 + math.exp(-2.3))
    gaps = [answers_of(found.domains[d]).calibration_error.value for d in ("bank", "clinic")]
    assert gaps == pytest.approx([1 - share, share], abs=1e-6)
    together = answers_of(found.overall).calibration_error.value
    assert together == pytest.approx(abs(0.5 - share), abs=1e-6)
    assert expected_calibration_error(np.array([[0.5, -0.25]])).tolist() == [0.75]

"""Scores equal a loop over samples and tokens, and are kept apart by domain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from fedfuse.builtin.architectures import ARCHITECTURES
from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError
from fedfuse.evaluation.losses import ModelNLL, SampleNLL, sample_nll
from fedfuse.evaluation.scoring import Evaluator
from fedfuse.models.forward import label_logits
from fedfuse.models.precision import TOKENS_PER_PASS
from fedfuse.tokenizers.dataset import TokenizedDataset
from tests.conftest import MAX_LENGTH, Tiny

Make = Callable[[str], Tiny]

TEST = [
    Sample("for gout the doctor chose", " zinc.", "clinic"),
    Sample("the desk at dover hedges copper with", " a lot of futures.", "bank"),
    Sample("", "a nurse noted gout.", "clinic"),
]
QUESTIONS = [
    Sample("for gout the doctor chose", " zinc.", "clinic", (" bonds.", " zinc."), 1),
    Sample("a nurse noted", " gout.", "clinic", (" gout.", " tin.", " copper."), 0),
    Sample("the desk hedges copper with", " notes.", "bank", (" swaps.", " notes."), 1),
]


def nll_of(model: Tiny) -> ModelNLL:
    return partial(sample_nll, model)


def nats_of(tiny: Tiny, sample: Sample) -> float:
    """Minus the log-probability of a sample's answer, one token after the other."""
    (encoded,) = tiny.tokenizer.encode([sample.text])
    ids = [tiny.tokenizer.bos_id, *encoded.ids.tolist()]
    total = 0.0
    for position, end in enumerate(encoded.ends, start=1):
        if end <= len(sample.prompt.encode()):
            continue
        with torch.no_grad():
            logits = tiny.model(input_ids=torch.tensor([ids[:position]])).logits[0, -1]
        probs = torch.softmax(logits[: tiny.tokenizer.vocab_size].double(), 0)
        total -= math.log(probs[ids[position]])
    return total


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_is_that_of_a_loop_over_tokens(tiny: Make, architecture: str) -> None:
    model = tiny(architecture)
    data = model.encode(TEST)
    right = [nats_of(model, sample) for sample in TEST]
    found = sample_nll(model, data)
    np.testing.assert_allclose(found, right, rtol=1e-4)
    scores = Evaluator(model.tokenizer, TEST, [], MAX_LENGTH).evaluate(nll_of(model))[0]
    assert list(scores) == ["bank", "clinic"]
    clinic_bytes = len(" zinc.") + len("a nurse noted gout.")
    assert scores["clinic"].loss == pytest.approx((right[0] + right[2]) / clinic_bytes, rel=1e-4)
    assert scores["bank"].loss == pytest.approx(right[1] / len(" a lot of futures."), rel=1e-4)
    assert [scores[d].samples for d in scores] == [1, 2]
    assert [scores[d].accuracy for d in scores] == [None, None]


def test_accuracy_is_that_of_a_loop_over_options(tiny: Make) -> None:
    model = tiny("llama")
    scores = Evaluator(model.tokenizer, TEST, QUESTIONS, MAX_LENGTH).evaluate(nll_of(model))[0]
    right: dict[str, list[bool]] = {"clinic": [], "bank": []}
    for question in QUESTIONS:
        nats = [nats_of(model, Sample(question.prompt, option)) for option in question.options]
        right[question.domain].append(int(np.argmin(nats)) == question.label)
    for domain, answers in right.items():
        assert scores[domain].accuracy == pytest.approx(np.mean(answers))


@pytest.mark.parametrize(("label", "accuracy"), [(0, 1.0), (1, 0.0), (2, 0.0)])
def test_accuracy_by_hand(tiny: Make, label: int, accuracy: float) -> None:
    """The option of the smallest sum wins, not that of the smallest loss per byte."""
    model = tiny("gpt2")
    options = (" tin.", " a very long list of futures and options.", " gout.")
    asked = [Sample("for", options[label], "bank", options, label)]
    evaluator = Evaluator(model.tokenizer, TEST[1:2], asked, MAX_LENGTH)
    per_option = np.array([2.0, 2.1, 3.0])
    scores = evaluator.evaluate(lambda data: per_option if len(data) == 3 else np.ones(1))[0]
    assert scores["bank"].accuracy == accuracy


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize(
    ("options", "accuracy"),
    [
        ((" zinc.", " zinc."), 0.5),  # nothing tells them apart
        ((" zinc and copper and futures and swaps.", " tin and gout and swaps and futures."), 0.5),
        ((" zinc.", " tin and gout and swaps and futures."), 0.5),  # one of them is cut off
        ((" bonds.", " zinc."), None),
    ],
)
def test_what_cannot_be_decided_is_a_guess(
    tiny: Make, options: tuple[str, str], accuracy: float | None, label: int
) -> None:
    """Wherever the right option stands; else always to say the first would be right or wrong."""
    model = tiny("llama")
    asked = [Sample("for gout", options[label], "bank", options, label)]
    # Room for short options and none for long ones.
    (fits,) = model.tokenizer.encode(["for gout zinc."])
    test = [Sample("for", " tin.", "bank")]
    evaluator = Evaluator(model.tokenizer, test, asked, len(fits.ids) + 3)
    found = evaluator.evaluate(nll_of(model))[0]["bank"].accuracy
    assert found == accuracy if accuracy is not None else found in (0.0, 1.0)


def test_a_domain_without_questions_has_no_accuracy(tiny: Make) -> None:
    model = tiny("gpt2")
    scores = Evaluator(model.tokenizer, TEST, QUESTIONS[:2], MAX_LENGTH).evaluate(nll_of(model))[0]
    assert scores["bank"].accuracy is None
    assert scores["clinic"].accuracy is not None


def test_a_cut_answer_counts_as_far_as_it_is_scored(tiny: Make) -> None:
    """Half the answer has half the nats: divided by all its bytes, the loss would look halved."""
    model = tiny("gpt2")
    long = Sample("", "zinc and copper and futures and swaps and tin.", "bank")
    data = model.encode([long], max_length=14)
    scored = int(data.label_bytes[0])
    assert 0 < scored < len(long.answer)
    nats = sample_nll(model, data)[0]
    short = Sample(long.prompt, long.answer[:scored])
    assert nats == pytest.approx(nats_of(model, short), rel=1e-4)
    score = Evaluator(model.tokenizer, [long], [], 14).evaluate(nll_of(model))[0]["bank"]
    assert score.loss == pytest.approx(nats / scored)


def test_a_domain_with_nothing_to_score_is_refused(tiny: Make) -> None:
    model = tiny("gpt2")
    test = [*TEST, Sample("only a prompt", "", "court"), Sample("another", "", "court")]
    with pytest.raises(FedfuseError, match="no label position in the test samples of court"):
        Evaluator(model.tokenizer, test, [], MAX_LENGTH)


def test_logits_come_without_gradients_and_leave_the_mode_alone(
    tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOKENS_PER_PASS, "cpu", 30)
    model = tiny("gpt2")
    model.model.train()
    for batch, logits in label_logits(replace(model, vocab_size=300), model.encode(TEST)):
        assert not logits.requires_grad
        assert logits.dtype == torch.float32
        assert logits.shape == (len(batch.row), 300)
        # The caller may compute gradients in between.
        assert torch.is_grad_enabled()
    assert not model.model.training


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batches_do_not_matter(
    tiny: Make, public: list[Sample], architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sample at a time, a few, or all at once: the same scores, as far as sums are."""
    model = tiny(architecture)
    data = model.encode(public)
    found = []
    for max_tokens, cost, batches in ((1, 9, len(public)), (60, 9, None), (9999, 0, 1)):
        monkeypatch.setitem(TOKENS_PER_PASS, "cpu", max_tokens)
        packed = 0 if batches else 100
        monkeypatch.setattr("fedfuse.models.forward.longest_packed", lambda *_, n=packed: n)
        monkeypatch.setattr("fedfuse.models.forward.pass_cost", lambda *_, cost=cost: cost)
        seen = [batch for batch, _ in label_logits(model, data)]
        assert batches in (None, len(seen))
        found.append(sample_nll(model, data))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-5)


@pytest.mark.parametrize(("autocast", "tolerance"), [("bfloat16", 0.03), ("float16", 0.004)])
def test_scores_in_mixed_precision(
    tiny: Make, public: list[Sample], autocast: str, tolerance: float
) -> None:
    model = tiny("llama")
    evaluator = Evaluator(model.tokenizer, public, [], MAX_LENGTH)
    exact, rounded = (
        evaluator.evaluate(nll_of(lm))[0] for lm in (model, replace(model, autocast=autocast))
    )
    for domain, score in exact.items():
        assert rounded[domain].loss == pytest.approx(score.loss, rel=tolerance)
        assert rounded[domain].loss != score.loss


def test_options_are_compared_by_their_bytes_too(tiny: Make) -> None:
    """A model that says 3 nats of a long right option and 2 of a short wrong one."""
    model = tiny("gpt2")
    options = (" zinc.", " a nurse noted gout.", " tin.")
    questions = [
        Sample("for gout the doctor chose", options[1], "clinic", options, 1),
        Sample("for gout the doctor chose", options[0], "clinic", options, 0),
    ]

    def nll(data: TokenizedDataset) -> SampleNLL:
        return np.where(data.label_bytes > 10, 3.0, 2.0) + (data.label_bytes == 5)

    evaluator = Evaluator(model.tokenizer, TEST[2:], questions, MAX_LENGTH)
    score = evaluator.evaluate(nll)[0]["clinic"]
    # By whole texts " zinc." (2 nats) comes first, by bytes the long one (3 / 20).
    assert (score.accuracy, score.normalized_accuracy) == (0.5, 0.5)
    score = Evaluator(model.tokenizer, TEST[2:], questions[:1], MAX_LENGTH).evaluate(nll)[0][
        "clinic"
    ]
    assert (score.accuracy, score.normalized_accuracy) == (0.0, 1.0)


def test_what_is_cut_off_is_a_guess_by_bytes_too(tiny: Make) -> None:
    model = tiny("gpt2")
    options = (" zinc.", " a nurse noted gout." * 9)
    question = Sample("for gout the doctor chose", options[0], "clinic", options, 0)
    score = Evaluator(model.tokenizer, TEST[2:], [question], 16).evaluate(nll_of(model))[0][
        "clinic"
    ]
    assert (score.accuracy, score.normalized_accuracy) == (0.5, 0.5)

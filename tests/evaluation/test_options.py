"""Shares of options: they add to one, and what cannot be told apart has equal ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from fedfuse.data.sample import Sample
from fedfuse.evaluation.losses import ModelNLL, sample_nll
from fedfuse.evaluation.options import OptionScorer, existing, normalized, possible
from tests.conftest import MAX_LENGTH, Tiny

QUESTIONS = [
    Sample("The key of the smith is", " red", "a", (" blue", " red", " dark green"), 1),
    Sample("On Monday the clerk sold", " a lamp", "b", (" a lamp", " two"), 0),
]


def nll_of(model: Tiny) -> ModelNLL:
    return partial(sample_nll, model)


@pytest.fixture
def model(tiny: Callable[[str], Tiny]) -> Tiny:
    return tiny("gpt2")


def test_shares_are_those_of_whole_texts(model: Tiny) -> None:
    found = OptionScorer(model.tokenizer, QUESTIONS, MAX_LENGTH).shares(nll_of(model))

    for row, question in zip(found, QUESTIONS, strict=True):
        texts = model.encode([Sample(question.prompt, option) for option in question.options])
        nll = torch.from_numpy(-sample_nll(model, texts))
        expected = torch.log_softmax(nll, 0).numpy()
        np.testing.assert_allclose(row[: len(expected)], expected, atol=1e-5)
        assert (row[len(expected) :] == -np.inf).all()


def test_a_question_with_an_option_that_is_cut_off_is_undecided(model: Tiny) -> None:
    longest = max(len(ids) for ids in model.tokenizer.encode_ids(QUESTIONS[0].options))
    found = OptionScorer(model.tokenizer, QUESTIONS, longest).logprobs(nll_of(model))

    np.testing.assert_allclose(np.exp(found[0]), 1 / 3, rtol=1e-6)


def test_whatever_is_claimed_adds_to_one() -> None:
    exists = existing(QUESTIONS)
    claimed = np.where(exists, np.array([[0.0, 0.0, 0.0], [-1e4, 3.0, 0.0]]), -np.inf)

    shares = np.exp(normalized(claimed))

    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(shares[0], 1 / 3, rtol=1e-6)
    assert shares[1].tolist() == [0, 1, 0]


def test_log_probabilities_are_those_of_whole_texts(model: Tiny) -> None:
    found = OptionScorer(model.tokenizer, QUESTIONS, MAX_LENGTH).logprobs(nll_of(model))

    texts = model.encode([Sample(q.prompt, option) for q in QUESTIONS for option in q.options])
    np.testing.assert_allclose(found[existing(QUESTIONS)], -sample_nll(model, texts), rtol=1e-5)


def test_no_claims_add_to_more_than_one() -> None:
    claimed = np.array([[0.0, 0.0, 0.0], [-2.0, -3.0, -np.inf], [-1e30, 5.0, -1.0]])

    found = np.exp(possible(claimed))

    np.testing.assert_allclose(found[0], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(found[1], np.exp(claimed[1]), rtol=1e-6)
    np.testing.assert_allclose(found[2].sum(), 1, rtol=1e-6)


def test_options_of_a_question_are_compared_behind_one_prompt(model: Tiny) -> None:
    """Where a long prompt loses its beginning, it loses the same for a short and a long option."""
    prompt = "On Monday the clerk sold the key of the smith to the man with the red lamp"
    short, long = " two", " a dark green lamp and a blue one"
    question = Sample(prompt, short, "b", (short, long), 0)
    ids, ends = model.tokenizer.encode([prompt])[0].ids, model.tokenizer.encode([prompt])[0].ends
    longest = len(ids) + 2

    [found] = OptionScorer(model.tokenizer, [question], longest).logprobs(nll_of(model))

    room = longest - 2 - len(model.tokenizer.encode_ids([long])[0])
    kept = prompt.encode()[ends[len(ids) - room - 1] :].decode()
    alone = model.encode([Sample(kept, short), Sample(kept, long)])
    assert 0 < len(kept) < len(prompt)
    np.testing.assert_allclose(found, -sample_nll(model, alone), rtol=1e-4)

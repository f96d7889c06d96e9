"""Blind evidence: what a candidate says of the public labels has no part in how it is judged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy import ndarray

from fedfuse.config.gate import GateConfig
from fedfuse.data.sample import Sample
from fedfuse.fusion.evidence import NEIGHBOURS, BlindQuestions, judged_blind
from fedfuse.fusion.rules import RULES
from tests.fusion.example_stats import made_up

# Samples of two domains, and blind questions of each.
SAMPLES, ASKED, OPTIONS = 12, 40, 4
DOMAINS = ("a", "b")


def questions(rng: np.random.Generator, width: int | None = 5) -> BlindQuestions:
    def states(count: int) -> ndarray | None:
        return None if width is None else rng.normal(size=(count, width)).astype(np.float32)

    public = [Sample(f"p{i}", "x", DOMAINS[i % 2]) for i in range(SAMPLES)]
    asked = [
        Sample(f"q{i}", "x", DOMAINS[i % 2], tuple("wxyz"), int(rng.integers(OPTIONS)))
        for i in range(ASKED)
    ]
    return BlindQuestions(asked, public, states(ASKED), states(SAMPLES))


def shares(rng: np.random.Generator) -> ndarray:
    """Somebody's answers to the questions."""
    drawn = rng.random((ASKED, OPTIONS))
    return np.log(drawn / drawn.sum(1, keepdims=True)).astype(np.float32)


def test_the_record_is_that_of_the_most_similar_questions() -> None:
    rng = np.random.default_rng(0)
    stats, blind = made_up(rng, SAMPLES, 3), questions(rng)
    answers = [blind.of_right_options(shares(rng)) for _ in range(3)]

    found = judged_blind(stats, blind, answers)

    assert blind.state is not None
    assert blind.public_state is not None
    mean = np.concatenate([blind.state, blind.public_state]).mean(0)
    for i, sample in enumerate(blind.public):
        own = blind.public_state[i] - mean
        same = [j for j, q in enumerate(blind.questions) if q.domain == sample.domain]

        def cosine(j: int, own: ndarray = own) -> float:
            other = blind.state[j] - mean
            return float(own @ other / np.linalg.norm(own) / np.linalg.norm(other))

        nearest = sorted(same, key=cosine, reverse=True)[:NEIGHBOURS]
        for c, answer in enumerate(answers):
            mean_log = answer[nearest].astype(float).mean()
            np.testing.assert_allclose(found.loss[i, c], -mean_log, rtol=1e-5)
            rows = slice(found.offsets[i], found.offsets[i + 1])
            said = found.label_logprob[rows, c][found.usable[rows, c]]
            np.testing.assert_allclose(said, mean_log, rtol=1e-5)


def test_a_wrong_answer_has_a_bounded_price() -> None:
    blind = questions(np.random.default_rng(0))
    right = np.array([q.label for q in blind.questions])
    certain = np.full((ASKED, OPTIONS), -np.inf, dtype=np.float32)
    certain[:, 0] = 0
    certain = np.maximum(certain, -80)

    found = blind.of_right_options(certain)

    np.testing.assert_allclose(found[right == 0], np.log(0.5 + 0.125), rtol=1e-6)
    np.testing.assert_allclose(found[right != 0], np.log(0.125), rtol=1e-6)
    even = np.full((ASKED, OPTIONS), -np.log(OPTIONS), dtype=np.float32)
    np.testing.assert_allclose(blind.of_right_options(even), -np.log(OPTIONS), rtol=1e-6)
    assert found.mean() < -np.log(OPTIONS)  # to guess is worse than to say that one guesses


def test_claims_about_labels_have_no_part() -> None:
    rng = np.random.default_rng(1)
    stats, blind = made_up(rng, SAMPLES, 3), questions(rng)
    answers = [blind.of_right_options(shares(rng)) for _ in range(3)]
    liar = stats.label_logprob.copy()
    liar[:, 2] = np.where(stats.usable[:, 2], -1e-3, 0)
    losses = stats.loss.copy()
    losses[:, 2] = 1e-3
    lying = replace(stats, label_logprob=liar, loss=losses)

    for name in ("dual-min-ce", "min-ce", "avg-ce", "nearest-neighbours", "learned-gate"):
        honest_weights, weights = (
            RULES[name].make(GateConfig(), 0)(judged_blind(given, blind, answers))
            for given in (stats, lying)
        )
        np.testing.assert_array_equal(weights, honest_weights, err_msg=name)


def test_who_knows_no_answer_is_never_better_than_who_knows_some() -> None:
    rng = np.random.default_rng(2)
    stats, blind = made_up(rng, SAMPLES, 3), questions(rng)
    right = np.array([q.label for q in blind.questions])
    expert = np.full((ASKED, OPTIONS), np.log(0.4 / 3), dtype=np.float32)
    expert[np.arange(ASKED), right] = np.log(0.6)
    guess = np.full((ASKED, OPTIONS), -np.log(OPTIONS), dtype=np.float32)
    answers = [blind.of_right_options(said) for said in (guess, expert, guess)]

    found = judged_blind(replace(stats, usable=np.ones_like(stats.usable)), blind, answers)

    for name in ("dual-min-ce", "min-ce", "nearest-neighbours"):
        weights = RULES[name].make(GateConfig(), 0)(found)
        np.testing.assert_array_equal(weights[:, 1], 1, err_msg=name)


def test_without_states_the_domain_alone_counts() -> None:
    rng = np.random.default_rng(3)
    stats, blind = made_up(rng, SAMPLES, 2), questions(rng, width=None)
    is_a = np.array([q.domain == "a" for q in blind.questions])
    answers = [np.where(is_a, -1.0, -2.0).astype(np.float32)] * 2

    found = judged_blind(stats, blind, answers)

    np.testing.assert_allclose(found.loss[0::2], 1)
    np.testing.assert_allclose(found.loss[1::2], 2)

"""Blind evidence: what a candidate says of the public labels has no part in how it is judged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy import ndarray

from fedfuse.config.gate import GateConfig
from fedfuse.data.sample import Sample
from fedfuse.fusion import likeness
from fedfuse.fusion.evidence import (
    DISBELIEVED,
    GUESSED,
    BlindQuestions,
    BlindRecord,
    beside_base,
    judged_blind,
)
from fedfuse.fusion.likeness import NEIGHBOURS, Prompts, nearest
from fedfuse.fusion.rules import RULES
from fedfuse.fusion.teacher_stats import StackedStats
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
    losses = np.full(ASKED, 9.0)
    return BlindQuestions(Prompts(asked, states(ASKED)), Prompts(public, states(SAMPLES)), losses)


def answers_of(rng: np.random.Generator, candidates: int) -> list[ndarray]:
    """Everybody's answers to the questions; no right one costs more than the first's."""
    drawn = np.log(rng.uniform(0.5, 1, (candidates, ASKED, OPTIONS)))
    drawn[0] -= 2
    return list(drawn.astype(np.float32))


def with_all_rows(stats: StackedStats) -> StackedStats:
    return replace(stats, usable=np.ones_like(stats.usable))


def test_the_record_is_that_of_the_most_similar_questions() -> None:
    rng = np.random.default_rng(0)
    stats, blind = made_up(rng, SAMPLES, 3), questions(rng)
    answers = [blind.judge(given) for given in answers_of(rng, 3)]

    found = judged_blind(stats, blind, answers)

    assert blind.asked.state is not None
    assert blind.public.state is not None
    mean = np.concatenate([blind.asked.state, blind.public.state]).mean(0)
    for i, sample in enumerate(blind.public.samples):
        own = blind.public.state[i] - mean
        same = [j for j, q in enumerate(blind.asked.samples) if q.domain == sample.domain]

        def cosine(j: int, own: ndarray = own) -> float:
            other = blind.asked.state[j] - mean
            return float(own @ other / np.linalg.norm(own) / np.linalg.norm(other))

        nearest = sorted(same, key=cosine, reverse=True)[:NEIGHBOURS]
        for c, answer in enumerate(answers):
            mean_log = answer.logprob[nearest].astype(float).mean()
            if c == 0:  # less its standard error, but for what is below chance
                less = mean_log - answer.logprob[nearest].std() / NEIGHBOURS**0.5
                mean_log = max(less, min(mean_log, -np.log(OPTIONS)))
            np.testing.assert_allclose(found.loss[i, c], -mean_log, rtol=1e-5)
            rows = slice(found.offsets[i], found.offsets[i + 1])
            said = found.label_logprob[rows, c][found.usable[rows, c]]
            np.testing.assert_allclose(said, mean_log, rtol=1e-5)


def test_a_wrong_answer_has_a_bounded_price() -> None:
    blind = questions(np.random.default_rng(0))
    right = np.array([q.label for q in blind.asked.samples])
    certain = np.full((ASKED, OPTIONS), -np.inf, dtype=np.float32)
    certain[:, 0] = 0
    certain = np.maximum(certain, -80)

    found = blind.judge(certain).logprob

    np.testing.assert_allclose(found[right == 0], np.log(0.5 + 0.125), rtol=1e-6)
    np.testing.assert_allclose(found[right != 0], np.log(0.125), rtol=1e-6)
    even = np.full((ASKED, OPTIONS), -np.log(OPTIONS), dtype=np.float32)
    np.testing.assert_allclose(blind.judge(even).logprob, -np.log(OPTIONS), rtol=1e-6)
    assert found.mean() < -np.log(OPTIONS)  # to guess is worse than to say that one guesses


def test_claims_about_labels_have_no_part() -> None:
    rng = np.random.default_rng(1)
    stats, blind = made_up(rng, SAMPLES, 3), questions(rng)
    answers = [blind.judge(given) for given in answers_of(rng, 3)]
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
    right = np.array([q.label for q in blind.asked.samples])
    expert = np.full((ASKED, OPTIONS), np.log(0.4 / 3), dtype=np.float32)
    expert[np.arange(ASKED), right] = np.log(0.6)
    guess = np.full((ASKED, OPTIONS), -np.log(OPTIONS), dtype=np.float32)
    answers = [blind.judge(said) for said in (guess - 2, expert, guess - 1)]

    found = judged_blind(with_all_rows(stats), blind, answers)

    for name in ("dual-min-ce", "min-ce", "nearest-neighbours"):
        weights = RULES[name].make(GateConfig(), 0)(found)
        np.testing.assert_array_equal(weights[:, 1], 1, err_msg=name)


def test_without_states_the_domain_alone_counts() -> None:
    rng = np.random.default_rng(3)
    stats, blind = made_up(rng, SAMPLES, 2), questions(rng, width=None)
    is_a = np.array([q.domain == "a" for q in blind.asked.samples])
    said = np.where(is_a, -1.0, -2.0).astype(np.float32)
    answers = [BlindRecord(said, np.ones(ASKED))] * 2

    found = judged_blind(stats, blind, answers)

    np.testing.assert_allclose(found.loss[0::2], 1)
    np.testing.assert_allclose(found.loss[1::2], 2)


def test_log_probabilities_are_judged_by_their_shares_and_by_their_nats_per_byte() -> None:
    blind = questions(np.random.default_rng(0))
    given = np.full((ASKED, OPTIONS), np.log(0.01), dtype=np.float32)

    found = blind.judge(given)

    np.testing.assert_allclose(found.logprob, -np.log(OPTIONS), rtol=1e-6)
    np.testing.assert_allclose(found.loss, -np.log(0.01), rtol=1e-6)  # answers have one byte


@pytest.mark.parametrize("name", ["dual-min-ce", "nearest-neighbours"])
@pytest.mark.parametrize(
    ("own", "teachers", "heard"),
    [
        (0.6, 0.6, True),  # it may know as much
        (0.6, 0.58, True),
        (0.6, 0.35, False),
        (0.25, 0.25, False),  # whoever guesses is not heard, though the server guesses too
        (0.2, 0.25, True),  # the server is worse than chance, by shares that are certain
    ],
)
def test_a_teacher_that_may_know_as_much_is_heard(
    name: str, own: float, teachers: float, heard: bool
) -> None:
    rng = np.random.default_rng(5)
    stats, blind = with_all_rows(made_up(rng, SAMPLES, 2)), questions(rng)
    right = np.array([q.label for q in blind.asked.samples])

    def said(share: float, spread: float) -> BlindRecord:
        shares = np.clip(share + spread * rng.choice([-1, 1], ASKED), 0.01, 0.99)
        given = np.repeat(np.log((1 - shares) / 3)[:, None], OPTIONS, axis=1)
        given[np.arange(ASKED), right] = np.log(shares)
        return replace(blind.judge(given.astype(np.float32)), loss=np.ones(ASKED))

    spread = 0.3 if own > 0.3 else 0.0
    judged = judged_blind(stats, blind, [said(own, spread), said(teachers, 0.0)])
    weights = RULES[name].make(GateConfig(), 0)(judged)
    assert (weights[:, 1] > 0).mean() == pytest.approx(float(heard), abs=0.2)


def test_who_ranks_better_but_pays_more_is_not_believed() -> None:
    rng = np.random.default_rng(4)
    stats, blind = with_all_rows(made_up(rng, SAMPLES, 3)), questions(rng)
    right = np.array([q.label for q in blind.asked.samples])
    even = np.full((ASKED, OPTIONS), np.log(0.2), dtype=np.float32)
    worse, better = even - 3, even - 3
    worse[np.arange(ASKED), right] += 2  # the best share, of little
    better[np.arange(ASKED), right] += 4
    answers = [blind.judge(said) for said in (even, worse, better)]

    found = judged_blind(stats, blind, answers)

    assert (answers[1].logprob > answers[0].logprob).all()
    assert found.available.tolist() == [[True, False, True]] * SAMPLES
    assert (found.loss[:, 1] == DISBELIEVED).all()
    assert -np.log(GUESSED / OPTIONS) < DISBELIEVED
    for name in ("dual-min-ce", "min-ce", "nearest-neighbours"):
        weights = RULES[name].make(GateConfig(), 0)(found)
        np.testing.assert_array_equal(weights[:, 2], 1, err_msg=name)


def test_who_shows_worse_than_the_learning_model_is_not_believed() -> None:
    rng = np.random.default_rng(5)
    stats = with_all_rows(made_up(rng, SAMPLES, 3))
    blind = replace(questions(rng), loss=rng.normal(0.5, 0.02, ASKED))
    stats.loss[:, 1:] = [0.3, 0.3]
    in_b = np.array([sample.domain == "b" for sample in blind.public.samples])
    stats.loss[in_b, 1] = 5.0
    answers = [blind.judge(said) for said in answers_of(rng, 3)]

    found = judged_blind(stats, blind, answers)

    assert found.available[:, [0, 2]].all()
    # Of five others of its domain and all six of the other, most are good even in a.
    assert not found.available[in_b, 1].any()


def test_noise_is_no_reason_to_disbelieve() -> None:
    rng = np.random.default_rng(6)
    blind, believed = questions(rng), []
    for _ in range(100):
        losses = rng.normal(1, 0.3, (SAMPLES + ASKED, 2))
        stats = with_all_rows(made_up(rng, SAMPLES, 2))
        stats.loss[:] = losses[:SAMPLES]
        answers = [blind.judge(np.full((ASKED, OPTIONS), -2, dtype=np.float32))] * 2
        found = judged_blind(stats, replace(blind, loss=losses[SAMPLES:, 0]), answers)
        believed.append(found.available[:, 1].mean())
    assert 0.95 < np.mean(believed) < 1  # about two standard errors


def test_nobody_can_make_the_noise() -> None:
    rng = np.random.default_rng(9)
    stats = with_all_rows(made_up(rng, SAMPLES, 2))
    blind = replace(questions(rng), loss=rng.normal(0.5, 0.1, ASKED))
    stats.loss[:, 1] = 0.1
    stats.loss[:2, 1] = 20.0  # rare and large: a mean that its own standard error could explain
    answers = [blind.judge(said) for said in answers_of(rng, 2)]

    assert not judged_blind(stats, blind, answers).available[2:, 1].any()


def test_what_a_sample_shows_has_no_part_in_whether_it_is_believed() -> None:
    rng = np.random.default_rng(7)
    stats = with_all_rows(made_up(rng, SAMPLES, 3))
    blind = replace(questions(rng), loss=np.full(ASKED, 0.5))
    answers = [blind.judge(said) for said in answers_of(rng, 3)]
    for sample in range(SAMPLES):
        moved = replace(stats, loss=stats.loss.copy())
        moved.loss[sample, 1:] = 99

        before, after = (judged_blind(given, blind, answers) for given in (stats, moved))

        np.testing.assert_array_equal(before.available[sample], after.available[sample])
        assert (before.available != after.available).any()


def test_one_public_sample_and_knowledge_of_nothing() -> None:
    rng = np.random.default_rng(8)
    stats = with_all_rows(made_up(rng, 1, 2))
    blind = questions(rng)
    alone = replace(blind, public=Prompts(blind.public.samples[:1], None))
    answers = [blind.judge(said) for said in answers_of(rng, 2)]

    assert judged_blind(stats, alone, answers).available.tolist() == [[True, False]]


def test_beside_the_base_a_teacher_must_know_more_than_it() -> None:
    rng = np.random.default_rng(10)
    stats, public = with_all_rows(made_up(rng, SAMPLES, 3)), questions(rng).public
    base = rng.normal(0.5, 0.02, SAMPLES)
    stats.loss[:] = [4.0, 0.3, 0.9]  # whoever has forgotten all is worse than everybody

    found = beside_base(stats, public, base)

    assert found.available.tolist() == [[True, True, False]] * SAMPLES
    np.testing.assert_array_equal(found.loss, stats.loss)
    assert not found.label_logprob[:, 2].any()
    np.testing.assert_array_equal(found.label_logprob[:, :2], stats.label_logprob[:, :2])


def test_neighbours_of_many_are_those_of_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(11)
    samples = [Sample(f"{i}", "x", DOMAINS[i % 2]) for i in range(50)]
    prompts = Prompts(samples, rng.normal(size=(50, 3)).astype(np.float32))

    found = nearest(prompts, prompts)
    monkeypatch.setattr(likeness, "_SAMPLES", 7)

    np.testing.assert_array_equal(nearest(prompts, prompts), found)
    assert not (found == np.arange(50)[:, None]).any()
    assert found.shape == (50, NEIGHBOURS)
    assert ((found - np.arange(50)[:, None]) % 2 == 0).all()  # 24 others of the domain

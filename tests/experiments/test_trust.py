"""Lies pass verification, and prove what they claim or nothing; the study's arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.trust import cost
from experiments.trust.labels import ABSENT, summarize, table
from experiments.trust.lies import LIES, guess, one_word_knowledge
from fedfuse.config.knowledge import KnowledgeConfig
from fedfuse.data.sample import Sample
from fedfuse.knowledge.aligner import KnowledgeAligner
from fedfuse.knowledge.extract import extract
from tests.conftest import MAX_LENGTH, Tiny

Make = Callable[[str], Tiny]


@pytest.mark.parametrize("lie", LIES)
def test_lies_pass_verification(tiny: Make, public: list[Sample], lie: str) -> None:
    server, client = tiny("gpt2"), tiny("llama")
    data = client.encode(public)
    aligner = KnowledgeAligner(server.tokenizer, public, MAX_LENGTH, KnowledgeConfig())
    told = LIES[lie](extract(client, data, 8), data.rows.token, np.random.default_rng(0))
    aligner.verify(told, client.tokenizer, data.fingerprint)
    proven = np.exp(-aligner.proven(told, client.tokenizer).loss * data.label_bytes)
    rows = np.diff(data.rows.offsets)
    expected = {"whole-label": 0.999**rows, "half-label": 0.999**rows / 2}
    if lie in expected:
        np.testing.assert_allclose(proven, expected[lie], rtol=1e-4)
    else:
        assert (proven < 1e-2).all()  # the tail is no place for a label


def test_one_word_for_all_teaches_nothing(tiny: Make, public: list[Sample]) -> None:
    server = tiny("gpt2")
    aligner = KnowledgeAligner(server.tokenizer, public, MAX_LENGTH, KnowledgeConfig())
    sent = one_word_knowledge(public, MAX_LENGTH, 8)
    aligner.verify(sent.knowledge, sent.tokenizer, sent.knowledge.public)
    assert (np.exp(sent.knowledge.label_logprob) > 0.99).all()
    assert not aligner(sent.knowledge, sent.tokenizer).weight.any()
    assert (aligner.proven(sent.knowledge, sent.tokenizer).loss > 3).all()


def test_guesses_are_right_as_often_as_chance() -> None:
    questions = [Sample("q", "a", options=("a", "b", "c", "d"), label=i % 4) for i in range(400)]
    logprobs = guess(questions, np.random.default_rng(0))
    np.testing.assert_allclose(np.exp(logprobs).sum(1), 1, atol=1e-5)
    right = logprobs.argmax(1) == [question.label for question in questions]
    assert 0.18 < right.mean() < 0.32


def row(strategy: str, evidence: str, liar: str, seed: int, excess: float) -> dict[str, Any]:
    about = {"seed": seed, "strategy": strategy, "evidence": evidence, "liar": liar}
    return about | {"excess": excess} | ({} if liar == ABSENT else {"largest_weight": seed / 10})


def test_the_summary_by_hand() -> None:
    rows = [
        row(strategy, evidence, liar, seed, 0.1 if liar == ABSENT else excess)
        for strategy in ("fedmkt", "fusion-x", "fedfuse")
        for evidence in ("blind", "open")
        for liar in (ABSENT, *LIES, "one-word")
        for seed, excess in ((0, 0.1), (1, 0.3))
    ]
    found = summarize(rows)
    assert found["excess_without_liars"]["blind"]["fedmkt"] == 0.1
    assert found["excess_over_absent"]["open"]["fedfuse"]["half-label"] == pytest.approx(1)
    assert found["excess_over_absent_std"]["open"]["fedfuse"]["half-label"] == pytest.approx(
        np.sqrt(2), abs=1e-4
    )
    assert found["largest_weight"]["open"]["fusion-x"]["one-word"] == pytest.approx(0.05)
    assert "| half-label | +100% ± 141%, 5% |" in table(found)


def test_the_cost_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        ("blind", 0): dict.fromkeys(cost.TITLES, 2.2),
        ("open", 0): dict.fromkeys(cost.TITLES, 2.0),
        ("blind", 1): dict.fromkeys(cost.TITLES, 3.0),
        ("open", 1): dict.fromkeys(cost.TITLES, 3.0),
    }
    monkeypatch.setattr(cost, "costs", found.__getitem__)
    summary = cost.summarize({key: key for key in found})  # type: ignore[misc]
    assert summary["server"] == {"blind": 2.6, "open": 2.5, "more": 0.05, "std": 0.0707}
    assert summary["seconds"] == {"more": 0.05, "std": 0.0707}
    assert "| server, excess | 2.5000 | 2.6000 | +5.0% \N{PLUS-MINUS SIGN} 7.1% |" in cost.table(
        summary
    )


def test_seconds_of_clients_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slowest client of a phase counts, and what the server did meanwhile does not."""
    monkeypatch.setattr(cost, "excesses", lambda run: {})
    monkeypatch.setattr(cost, "traffic", lambda run: 0)
    spent = [
        (1, "train.local", 3.0),
        (1, "train.local", 5.0),
        (1, "server.labels", 4.0),
        (1, "server.aggregate", 2.0),
        (2, "train.local", 1.0),
    ]
    lines = [SimpleNamespace(round=r, phase=p, seconds=s) for r, p, s in spent]
    found = cost.costs(SimpleNamespace(messages=lines))  # type: ignore[arg-type]
    assert found["seconds"] == 5 + 2 + 1

"""Which prompt comes next, on prompts of the small masked language model."""

from __future__ import annotations

import pytest

from fedfuse.config.feddtpt_settings import AggregationSettings
from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.next_prompt import AggregationResult, next_prompt
from fedfuse.feddtpt.prompt import Prompt, TunedPrompt
from tests.feddtpt.fakes import masked_lm

WORTH = {"please read": 0.5, "judge mood": 0.9, "judge feeling": 0.7}
MERGED = AggregationSettings("gain", 6)


def encode(text: str) -> Prompt:
    return masked_lm().encode(text)


def tuned(text: str, accuracy: float) -> TunedPrompt:
    prompt = encode(text)
    return TunedPrompt(prompt, (0.0,) * len(prompt.tokens), accuracy, 5)


TUNED = {"b": tuned("judge mood", 0.2), "a": tuned("judge feeling", 0.6)}


def follow(
    settings: AggregationSettings | None, choice: str, sent: dict[str, TunedPrompt] = TUNED
) -> tuple[AggregationResult, list[str]]:
    asked: list[str] = []

    def score(prompt: Prompt) -> float:
        asked.append(masked_lm().text(prompt))
        return WORTH.get(asked[-1], 0.0)

    return next_prompt(sent, masked_lm(), encode("please read"), settings, choice, score), asked


def test_all_compete() -> None:
    found, asked = follow(MERGED, "all")
    assert list(found.choice.scores) == ["previous", "aggregated", "a", "b"]
    assert found.choice.name == "b"
    assert found.aggregation is not None
    assert found.aggregation.prompt == encode("judge feeling")
    assert asked == ["please read", "judge feeling", "judge mood"]  # equal candidates once


def test_the_aggregated_one_alone() -> None:
    found, _ = follow(MERGED, "aggregated")
    assert found.choice.scores == {"previous": 0.5, "aggregated": 0.7}
    assert found.choice.prompt == encode("judge feeling")
    worse = {"a": tuned("text below", 0.6), "b": tuned("text below", 0.2)}
    found, _ = follow(MERGED, "aggregated", worse)
    assert found.choice.scores == {"previous": 0.5, "aggregated": 0.0}
    assert found.choice.prompt == encode("please read")


def test_unseen_as_in_the_paper() -> None:
    found, asked = follow(MERGED, "none")
    assert found.aggregation is not None
    assert found.choice.prompt == found.aggregation.prompt
    assert (found.choice.name, asked, found.choice.scores) == ("aggregated", [], {})


def test_the_best_client() -> None:
    assert follow(None, "all")[0].choice.scores == {"previous": 0.5, "a": 0.7, "b": 0.9}
    found, asked = follow(None, "none")
    # By its own word: "b" said 0.2.
    assert (found.choice.name, asked, found.aggregation) == ("a", [], None)


def test_one_client_is_not_aggregated() -> None:
    found, _ = follow(MERGED, "aggregated", {"b": TUNED["b"]})
    assert found.choice.scores == {"previous": 0.5, "b": 0.9}
    assert found.aggregation is None


def test_nobody() -> None:
    with pytest.raises(FedfuseError, match="no tuned prompt; allowed: at least one"):
        follow(MERGED, "all", {})

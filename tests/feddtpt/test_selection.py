"""Which prompt comes next, on prompts of the small masked language model."""

from __future__ import annotations

import pytest

from fedfuse.config.feddtpt import AggregationConfig
from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.prompt import Prompt, TunedPrompt
from fedfuse.feddtpt.selection import AggregationResult, select_prompt
from tests.feddtpt.fakes import masked_lm

WORTH = {"please read": 0.5, "judge mood": 0.9, "judge feeling": 0.7}
MERGED, BEST = AggregationConfig("gain", 6), AggregationConfig("best-client")


def encode(text: str) -> Prompt:
    return masked_lm().encode(text)


def tuned(text: str, accuracy: float) -> TunedPrompt:
    prompt = encode(text)
    return TunedPrompt(prompt, (0.0,) * len(prompt.tokens), accuracy, 5)


TUNED = {"b": tuned("judge mood", 0.2), "a": tuned("judge feeling", 0.6)}


def follow(
    config: AggregationConfig, candidates: str, sent: dict[str, TunedPrompt] = TUNED
) -> tuple[AggregationResult, list[str]]:
    asked: list[str] = []

    def score(prompt: Prompt) -> float:
        asked.append(masked_lm().text(prompt))
        return WORTH.get(asked[-1], 0.0)

    return select_prompt(sent, masked_lm(), encode("please read"), config, candidates, score), asked


def test_all_compete() -> None:
    found, asked = follow(MERGED, "all")
    assert list(found.scores) == ["previous", "aggregated", "a", "b"]
    assert found.name == "b"
    assert found.aggregated is not None
    assert found.aggregated.prompt == encode("judge feeling")
    assert asked == ["please read", "judge feeling", "judge mood"]  # equal candidates once


def test_the_aggregated_one_alone() -> None:
    found, _ = follow(MERGED, "aggregated")
    assert found.scores == {"previous": 0.5, "aggregated": 0.7}
    assert found.prompt == encode("judge feeling")
    worse = {"a": tuned("text below", 0.6), "b": tuned("text below", 0.2)}
    found, _ = follow(MERGED, "aggregated", worse)
    assert found.scores == {"previous": 0.5, "aggregated": 0.0}
    assert found.prompt == encode("please read")


def test_unseen_as_in_the_paper() -> None:
    found, asked = follow(MERGED, "none")
    assert found.aggregated is not None
    assert found.prompt == found.aggregated.prompt
    assert (found.name, asked, found.scores) == ("aggregated", [], {})


def test_the_best_client() -> None:
    assert follow(BEST, "all")[0].scores == {"previous": 0.5, "a": 0.7, "b": 0.9}
    found, asked = follow(BEST, "none")
    # By its own word: "b" said 0.2.
    assert (found.name, asked, found.aggregated) == ("a", [], None)


def test_one_client_is_not_aggregated() -> None:
    found, _ = follow(MERGED, "aggregated", {"b": TUNED["b"]})
    assert found.scores == {"previous": 0.5, "b": 0.9}
    assert found.aggregated is None


def test_nobody() -> None:
    with pytest.raises(FedfuseError, match="tuned prompts: expected at least one, got none"):
        follow(MERGED, "all", {})

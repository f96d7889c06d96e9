"""Aggregation on prompts whose tokens' embeddings are chosen by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedfuse.config.feddtpt import METHODS, AggregationConfig
from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.aggregation import AggregatedPrompt, Source, aggregate
from fedfuse.feddtpt.prompt import Prompt, TunedPrompt
from fedfuse.feddtpt.selection import best_candidate
from fedfuse.feddtpt.similarity import NOISE

WIDTH = 12
PREVIOUS = Prompt((0, 1))
# Directions of tokens that mean nearly the same; every other token has a direction of its own.
ALIKE = {10: 1, 11: 1, 12: 1}


def embed(prompt: Prompt) -> np.ndarray:
    """Without context, so that what must come out can be told by hand."""
    rows = np.zeros((len(prompt.tokens), WIDTH), dtype=np.float32)
    for row, token in enumerate(prompt.tokens):
        rows[row, ALIKE.get(token, token)] = 1
        if token in ALIKE:
            rows[row, 11] = 0.01 * (token - 9)
    return rows


def tuned(tokens: str, gains: str = "") -> TunedPrompt:
    prompt = Prompt(tuple(map(int, tokens.split())))
    gain = tuple(map(float, gains.split())) if gains else (0.0,) * len(prompt.tokens)
    return TunedPrompt(prompt, gain, 0.5, 10)


def run(clients: dict[str, TunedPrompt], method: str, **options: object) -> AggregatedPrompt:
    return aggregate(clients, embed, PREVIOUS, AggregationConfig(method, **options))


CLIENTS = {
    "a": tuned("0 2 10", "0 0 0"),
    "b": tuned("2 0 11 6", "0 0 0.1 0.4"),
    "c": tuned("0 7 12 2", "0 0 0.2 0"),
}


def test_paper_drops_noise_and_keeps_one_token_a_cluster() -> None:
    """6 and 7 are in one prompt each; 10, 11 and 12 are one cluster.

    A softmax of a short prompt gives each token more, so the tokens of client a stand for all.
    """
    found = run(CLIENTS, "paper")
    assert found.prompt == Prompt((0, 2, 10))
    assert [token.clients for token in found.kept] == [("a", "b", "c")] * 3
    noise = {s.token for s, c in zip(found.uploaded, found.clusters, strict=True) if c == NOISE}
    assert noise == {6, 7}
    assert found.kept[2].sources[0] == Source("a", 2, 10)
    assert {source.token for source in found.kept[2].sources} == {10, 11, 12}


def test_paper_orders_by_original_position() -> None:
    """Each cluster's representative comes from the shorter prompt, at its place there."""
    clients = {"a": tuned("3 2"), "b": tuned("0 2 3 0")}
    assert run(clients, "paper").prompt == Prompt((3, 0, 2))


def test_paper_without_clusters_keeps_the_previous_prompt() -> None:
    found = run({"a": tuned("2")}, "paper")
    assert (found.prompt, found.kept) == (PREVIOUS, ())


def test_gain_keeps_what_a_single_client_discovered() -> None:
    """Only client b has 6, which is no like of any other token, so support alone would drop it."""
    clients = {**CLIENTS, "d": tuned("0 2 6 12", "0 0 0 0")}
    found = run(clients, "gain", max_tokens=4)
    assert 6 in found.prompt.tokens
    assert 7 not in found.prompt.tokens


def test_gain_represents_a_cluster_by_its_heaviest_token() -> None:
    (token,) = (t for t in run(CLIENTS, "gain").kept if t.token in ALIKE)
    assert token.sources[0] == Source("c", 2, 12)
    assert len(token.sources) == 3
    best = run(CLIENTS, "gain")
    index = best.uploaded.index(Source("c", 2, 12))
    assert token.weight == pytest.approx(best.weights[index] * 3**0.5)


def test_gain_discounts_noise() -> None:
    """6 and 7 are alike to nobody; the tokens around them pair up."""
    clients = {"a": tuned("2 10 6 0", "0 0 0.3 0"), "b": tuned("2 11 7 0", "0 0.1 0 0")}
    full, half = (run(clients, "gain", noise_discount=share) for share in (1.0, 0.5))
    for one, other in zip(full.kept, half.kept, strict=True):
        assert other.weight == pytest.approx(one.weight * (0.5 if one.cluster == NOISE else 1.0))


def test_gain_orders_by_mean_relative_position() -> None:
    """3 is last in the short prompt and first in the long one: in the middle on the whole."""
    clients = {"a": tuned("0 3"), "b": tuned("3 0 4 4 2 2"), "c": tuned("4 2")}
    found = run(clients, "gain")
    # 0: 0 and 0.2; 3: 1 and 0; 4: 0.4, 0.6 and 0; 2: 0.8, 1 and 1
    assert found.prompt == Prompt((0, 4, 3, 2))


def test_gain_has_no_token_twice_and_at_most_the_cap() -> None:
    clients = {name: tuned("0 1 2 3 4 5 0 1") for name in "abc"}
    found = run(clients, "gain")
    assert sorted(found.prompt.tokens) == [0, 1, 2, 3, 4, 5]
    assert len(run(clients, "gain", max_tokens=3).prompt.tokens) == 3


def test_average_takes_the_nearest_uploaded_token() -> None:
    """Two of three say 2 first; the fourth position is held by one client of three."""
    clients = {"a": tuned("2 5 4"), "b": tuned("2 5 4 7"), "c": tuned("3 0 4")}
    found = run(clients, "average")
    assert found.prompt == Prompt((2, 5, 4))
    assert found.kept[0].clients == ("a", "b", "c")


def test_attention_keeps_the_tokens_of_most_attention() -> None:
    """7 and 6 have no like elsewhere. Equal tokens are kept as often as they are there."""
    found = run(CLIENTS, "attention", fixed_size=9)
    assert sorted(found.prompt.tokens) == [0, 0, 0, 2, 2, 2, 10, 11, 12]
    assert (found.clusters == NOISE).all()


def test_kmeans_has_a_fixed_number_of_clusters() -> None:
    """With as many clusters as directions every token's direction is represented."""
    found = run(CLIENTS, "k-means", fixed_size=5)
    assert sorted(ALIKE.get(token, token) for token in found.prompt.tokens) == [0, 1, 2, 6, 7]
    assert len(run(CLIENTS, "k-means", fixed_size=2).prompt.tokens) == 2


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_clients_has_no_say(method: str) -> None:
    turned = dict(reversed(CLIENTS.items()))
    one, other = run(CLIENTS, method), run(turned, method)
    assert one.kept == other.kept
    assert one.uploaded == other.uploaded
    np.testing.assert_array_equal(one.clusters, other.clusters)
    np.testing.assert_array_equal(one.weights, other.weights)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_report_draws_fits_together(method: str) -> None:
    found = run(CLIENTS, method, max_tokens=4)
    assert len(found.uploaded) == len(found.embeddings) == len(found.clusters) == 11
    assert found.prompt == Prompt(tuple(token.token for token in found.kept))
    assert len(found.kept) <= 4
    for token in found.kept:
        assert token.sources[0].token == token.token
        assert set(token.sources) <= set(found.uploaded)
    assert (found.epsilon is None) == (method not in ("gain", "paper"))


def test_an_empty_prompt_is_left_out() -> None:
    assert run({**CLIENTS, "z": tuned("")}, "gain").kept == run(CLIENTS, "gain").kept
    with pytest.raises(FedfuseError, match="at least one token, got 1 without any"):
        run({"z": tuned("")}, "gain")


@pytest.mark.parametrize("gains", ["0.1", "0 0 0 0", "nan 0 0", "2 0 0", "0 -1.5 0"])
def test_gains_that_cannot_be_are_refused(gains: str) -> None:
    with pytest.raises(FedfuseError, match="client 'b': expected 3 gains"):
        run({"a": CLIENTS["a"], "b": tuned("1 2 3", gains)}, "paper")


def test_settings_are_refused_together() -> None:
    wrong = {"max_tokens": 0, "min_samples": 1, "fixed_size": 0, "noise_discount": 2.0}
    with pytest.raises(FedfuseError) as refused:
        run(CLIENTS, "mean", **wrong)
    for part in (
        "method: expected 'gain', 'paper', 'average', 'attention', 'k-means', 'best-client', got",
        "max-tokens: expected at least 1, at most 150, got 0",
        "min-samples: expected at least 2, got 1",
        "fixed-size: expected at least 1, got 0",
        "noise-discount: expected at least 0, at most 1, got 2.0",
    ):
        assert part in str(refused.value)
    assert replace(AggregationConfig(), method="paper").method == "paper"


def test_the_best_candidate_is_chosen_and_equal_ones_are_scored_once() -> None:
    asked = []

    def score(prompt: Prompt) -> float:
        asked.append(prompt)
        return {1: 0.5, 2: 0.75, 3: 0.75}[prompt.tokens[0]]

    candidates = {"previous": Prompt((1,)), "aggregated": Prompt((2,)), "a": Prompt((1,))}
    name, scores = best_candidate({**candidates, "b": Prompt((3,))}, score)
    assert (name, candidates[name]) == ("aggregated", Prompt((2,)))
    assert scores == {"previous": 0.5, "aggregated": 0.75, "a": 0.5, "b": 0.75}
    assert asked == [Prompt((1,)), Prompt((2,)), Prompt((3,))]


def test_a_tie_leaves_the_first() -> None:
    name, _ = best_candidate({"previous": Prompt((1,)), "aggregated": Prompt((2,))}, lambda _: 0.5)
    assert name == "previous"
    with pytest.raises(FedfuseError, match="candidates: expected at least one"):
        best_candidate({}, lambda _: 0.5)

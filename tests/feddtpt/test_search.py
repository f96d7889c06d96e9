"""The search improves prompts, follows its rules, and goes on after it was killed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from fedfuse.config.feddtpt import PROPOSERS, BlackBoxConfig, SearchConfig
from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.accuracy import accuracy, sample_batch
from fedfuse.feddtpt.black_box import BudgetExceeded
from fedfuse.feddtpt.http_black_box import HttpBlackBox
from fedfuse.feddtpt.ledger import Budget, Ledger
from fedfuse.feddtpt.masked_lm import MaskedLM
from fedfuse.feddtpt.meter import Meter
from fedfuse.feddtpt.prompt import Prompt, TunedPrompt
from fedfuse.feddtpt.search import PromptSearch, _gain_after
from fedfuse.feddtpt.search_state import NO_TOKEN, Edit, Feedback, SearchState
from fedfuse.http_service import Retry, ServiceError
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.feddtpt.endpoint import Odd, serve
from tests.feddtpt.fakes import (
    EXAMPLES,
    MOOD,
    Function,
    bert,
    masked_lm,
    subword_tokenizer,
    understands,
)

BATCH = sample_batch(EXAMPLES[:12], EXAMPLES[12:], (12, 12), 0)
START = "please read the text below"


def searcher(
    function: Callable[[str], str] = understands,
    *,
    budget: Budget | None = None,
    seed: int = 0,
    backend: Function | None = None,
    ledger: Ledger | None = None,
    **settings: Any,
) -> PromptSearch:
    meter = Meter(backend or Function(function), ledger or Ledger(), budget or Budget())
    chosen = SearchConfig(**{"queries": 40, "patience": 40, "max_length": 9} | settings)
    return PromptSearch(MOOD, BATCH, masked_lm(), meter, chosen, seed)


def start() -> Prompt:
    return masked_lm().encode(START)


def exact(prompt: Prompt) -> float:
    """Its accuracy, with all answers."""
    meter = Meter(Function(understands), Ledger(), Budget())
    found = accuracy(MOOD, masked_lm().text(prompt), BATCH, meter)
    assert found is not None
    return found


@pytest.mark.parametrize("proposer", PROPOSERS)
def test_every_proposer_improves_a_vague_prompt(proposer: str) -> None:
    first = exact(start())
    tuned = [
        (s := searcher(proposer=proposer, seed=seed)).run(s.begin(start())) for seed in range(6)
    ]
    assert np.mean([t.accuracy for t in tuned]) > first + 0.2
    for found in tuned:
        assert found.accuracy == exact(found.prompt) >= first
        assert len(found.gain) == len(found.prompt.tokens) <= 9
        assert masked_lm().canonical(found.prompt) == found.prompt


@pytest.mark.parametrize("proposer", PROPOSERS)
@pytest.mark.parametrize("seed", range(4))
def test_each_step_follows_the_rules(proposer: str, seed: int) -> None:
    """The trace, played again from the start with every answer."""
    search = searcher(proposer=proposer, seed=seed)
    state = search.begin(start())
    tuned = search.run(state)
    tokens, now, seen = start().tokens, exact(start()), {start().tokens}
    for step in state.trace:
        edit = step.edit
        assert edit.old == (*tokens, NO_TOKEN)[edit.position]
        after = edit.apply(tokens)
        assert after not in seen
        seen.add(after)
        worth = exact(Prompt(after))
        assert step.accuracy in ({worth} if worth >= now else {worth, None})
        if worth != now:
            assert step.taken == (worth > now)
        elif edit.how != "replace":
            assert step.taken == (edit.how == "delete")
        if step.taken:
            tokens, now = after, worth
    assert (tokens, now) == (tuned.prompt.tokens, tuned.accuracy)
    assert all(a.queries <= b.queries for a, b in pairwise(state.trace))


def test_some_ties_are_kept_and_most_are_not() -> None:
    """With a black box that no prompt impresses, all is a tie."""
    search = searcher(lambda text: "good", queries=150, patience=150)
    state = search.begin(start())
    tuned = search.run(state)
    kinds = ("replace", "insert", "delete")
    taken = {how: [s.taken for s in state.trace if s.edit.how == how] for how in kinds}
    assert all(taken.values())
    assert not any(taken["insert"])
    assert all(taken["delete"])
    assert 0.05 < np.mean(taken["replace"]) < 0.4
    assert set(tuned.gain) == {0.0}


def test_a_gain_is_what_was_measured_and_goes_on_to_what_replaces_it() -> None:
    gain = (0.0, 0.5, 0.0)
    assert _gain_after(Edit("insert", 1, 7, 8), gain, 0.25) == (0.0, 0.25, 0.5, 0.0)
    assert _gain_after(Edit("replace", 1, 7, 8), gain, 0.25) == (0.0, 0.75, 0.0)
    assert _gain_after(Edit("replace", 1, 7, 8), gain, 0.0) == gain
    assert _gain_after(Edit("delete", 0, 7, NO_TOKEN), gain, 0.1) == (0.5, 0.0)


def test_proposals_avoid_what_failed_and_dwell_on_what_helped() -> None:
    """With feedback no failed edit is drawn again; without, some are."""
    repeats = {}
    for proposer in ("feedback", "masked-lm"):
        # A long prompt of few words: many places are alike.
        search = searcher(lambda text: "good", proposer=proposer, queries=200, patience=200)
        state = search.begin(Prompt(start().tokens * 2))
        search.run(state)
        failed: set[tuple[str, int, int]] = set()
        repeats[proposer] = 0
        for step in state.trace:
            edit = (step.edit.how, step.edit.old, step.edit.new)
            repeats[proposer] += edit in failed
            if not step.taken:
                failed.add(edit)
    assert repeats["feedback"] == 0
    assert repeats["masked-lm"] > 0


def drawn(feedback: Feedback, proposer: str = "feedback", **settings: Any) -> list[Edit]:
    """What is drawn in one state, over and over."""
    search = searcher(proposer=proposer, max_length=5, **settings)
    state = search.begin(start(), feedback)
    edits = [search._draw(state, np.random.default_rng(seed)) for seed in range(200)]
    return [edit for edit in edits if edit is not None and edit.how == "replace"]


def test_feedback_shifts_places_and_tokens() -> None:
    helpful, place = int(masked_lm().allowed[-1]), start().tokens[2]
    feedback = Feedback({("replace", place): 100.0}, {helpful: 100.0})
    edits = drawn(feedback, top=1)
    assert np.mean([edit.position == 2 for edit in edits]) > 0.9
    assert {edit.new for edit in edits} == {helpful}
    edits = drawn(feedback, "masked-lm", top=1)
    assert np.mean([edit.position == 2 for edit in edits]) < 0.4
    likeliest = {
        int(masked_lm().proposals(start(), place, "replace", 1)[0][0]) for place in range(5)
    }
    assert {edit.new for edit in edits} == likeliest
    assert len({edit.new for edit in drawn(feedback, "random", top=1)}) > 30


def test_likelier_tokens_are_drawn_more_often() -> None:
    edits = [edit for edit in drawn(Feedback(), top=2) if edit.position == 0]
    ids, logprobs = masked_lm().proposals(start(), 0, "replace", 2)
    share = 1 / (1 + np.exp(0.5 * (logprobs[1] - logprobs[0])))
    assert {edit.new for edit in edits} == set(ids.tolist())
    assert np.mean([edit.new == ids[0] for edit in edits]) == pytest.approx(share, abs=0.2)


def longer_is_better(question: str) -> str:
    prompt, _, item = question.removesuffix(" =>").rpartition(" | item ")
    return ("good", "bad")[int(item) % 2] if int(item) < len(prompt) / 3 else "neither"


def test_only_prompts_that_survive_as_text_are_evaluated() -> None:
    """Pieces of words that would be read as other pieces are never asked about."""
    tokenizer = subword_tokenizer("byte-level-bpe")
    lm = MaskedLM(bert(len(tokenizer)), TextTokenizer.from_pretrained(tokenizer), "subwords")
    settings = SearchConfig("random", queries=150, patience=150)
    meter = Meter(Function(longer_is_better), Ledger(), Budget())
    search = PromptSearch(MOOD, BATCH, lm, meter, settings, 0)
    state = search.begin(lm.encode("r e a d"))
    tuned = search.run(state)
    assert len(tuned.prompt.tokens) > 10
    assert all(lm.canonical(Prompt(tokens)).tokens == tokens for tokens in state.seen)


def test_feedback_goes_on_in_the_next_search() -> None:
    search = searcher(queries=10)
    state = search.begin(start())
    search.run(state)
    assert state.feedback.failed
    old = set(state.feedback.failed)
    later = search.begin(start(), state.feedback)
    other = searcher(queries=10, seed=1)
    other.run(later)
    edits = {(s.edit.how, s.edit.old, s.edit.new) for s in later.trace}
    assert not edits & old


def test_one_seed_one_search() -> None:
    states = []
    for seed in (3, 3, 4):
        search = searcher(seed=seed)
        states.append(search.begin(start()))
        search.run(states[-1])
    assert states[0] == states[1]
    assert states[0].trace != states[2].trace


@pytest.mark.parametrize("die_at", [0, 1, 5, 17, 40])
def test_a_killed_search_goes_on_and_pays_nothing_again(die_at: int) -> None:
    """Killed in the middle of an evaluation; the state is what was kept after the last step."""
    whole = Function(understands, batch_size=3)
    search = searcher(backend=whole)
    state = search.begin(start())
    wanted = search.run(state)

    ledger, kept = Ledger(), [""]
    dying = Function(
        understands,
        batch_size=3,
        trouble=lambda call: ServiceError("killed", billed=False) if call == die_at else None,
    )
    first = searcher(backend=dying, ledger=ledger)
    begun = first.begin(start())
    kept[0] = begun.to_json()
    with pytest.raises(ServiceError, match="killed"):
        first.run(begun, lambda state: kept.__setitem__(0, state.to_json()))
    assert begun.to_json() == kept[0]
    resumed = SearchState.from_json(kept[0])
    assert searcher(backend=dying, ledger=ledger).run(resumed) == wanted
    assert resumed == state
    # The call that failed is the only one that was made twice.
    assert dying.asked == whole.asked + (dying.asked - whole.asked)
    assert (dying.asked - whole.asked).total() == dying.sizes[die_at]
    assert set(whole.asked.values()) == {1}


def test_every_step_can_be_the_last_before_a_kill() -> None:
    search = searcher(queries=12)
    kept: list[str] = []
    state = search.begin(start())
    wanted = search.run(state, lambda state: kept.append(state.to_json()))
    assert len(kept) > 12
    for text in kept[::3]:
        again = searcher(queries=12)
        resumed = SearchState.from_json(text)
        assert resumed.to_json() == text
        found = again.run(resumed)
        assert (found.prompt, found.gain) == (wanted.prompt, wanted.gain)
        assert resumed.feedback == state.feedback


def test_a_service_that_fails_all_the_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over HTTP, with every kind of failure, the same search; each question answered once."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    wanted = (plain := searcher(queries=6)).run(plain.begin(start()))
    with serve(understands) as endpoint:
        kinds = [Odd(), Odd(429), Odd(), Odd(500, "no"), Odd(), Odd(body="{"), Odd()]
        endpoint.misbehave(kinds * 20)
        model = HttpBlackBox(BlackBoxConfig("tiny", endpoint.url, max_tokens=16, concurrency=2))
        meter = Meter(model, Ledger(), Budget(queries=300), retry=Retry(30, 0.0))
        settings = SearchConfig(queries=6, patience=40, max_length=9)
        search = PromptSearch(MOOD, BATCH, masked_lm(), meter, settings, 0)
        found = search.run(search.begin(start()))
        model.close()
    assert (found.prompt, found.gain, found.accuracy) == (
        wanted.prompt,
        wanted.gain,
        wanted.accuracy,
    )
    failures = sum(kinds[i % 7].body is not None or kinds[i % 7].status != 200 for i in range(140))
    assert wanted.queries < found.queries <= wanted.queries + failures
    questions = [request["messages"][0]["content"] for request in endpoint.requests]
    assert len(set(questions)) == wanted.queries


@pytest.mark.parametrize("queries", [24, 25, 60, 100])
def test_the_budget_ends_the_search_and_is_never_passed(queries: int) -> None:
    backend = Function(understands)
    search = searcher(backend=backend, budget=Budget(queries))
    tuned = search.run(search.begin(start()))
    assert backend.asked.total() == tuned.queries <= queries
    assert set(backend.asked.values()) == {1}
    assert tuned.accuracy == exact(tuned.prompt)


def test_a_budget_for_not_even_the_start() -> None:
    search = searcher(budget=Budget(5))
    with pytest.raises(BudgetExceeded):
        search.run(search.begin(start()))


def test_queries_are_those_of_this_search() -> None:
    ledger = Ledger()
    first = searcher(ledger=ledger, queries=3)
    one = first.run(first.begin(start()))
    again = searcher(ledger=ledger, queries=3)
    two = again.run(again.begin(start()))
    assert one.queries > 24
    assert two == TunedPrompt(one.prompt, one.gain, one.accuracy, 0)


def test_why_a_search_is_over() -> None:
    search = searcher(queries=0)
    state = search.begin(start())
    assert search.finished(state) == ""
    tuned = search.run(state)
    assert (search.finished(state), tuned.prompt) == ("all evaluations are done", start())
    numbers = ("good", "bad")
    search = searcher(lambda text: numbers[int(text.split("item ")[1][:-3]) % 2])
    state = search.begin(start())
    search.run(state)
    assert (search.finished(state), state.trace) == ("every answer is right", [])
    search = searcher(lambda text: "good", patience=4)
    state = search.begin(start())
    search.run(state)
    assert (search.finished(state), len(state.trace)) == ("no gain for long", 4)
    search = searcher(lambda text: "good", max_length=1, queries=999, patience=999)
    state = search.begin(masked_lm().encode("read"))
    search.run(state)
    assert search.finished(state) == "nothing new to try"
    assert len(state.trace) < len(masked_lm().allowed)


def test_a_start_is_taken_as_its_text_is_tokenized() -> None:
    mask = masked_lm().tokenizer.special_ids["mask"]
    state = searcher().begin(Prompt((*start().tokens, mask)))
    assert state.prompt == start()
    assert state.gain == (0.0,) * 5


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(FedfuseError, match=r"expected 'feedback', .* got 'best'; top: expected at"):
        searcher(proposer="best", top=0)
    for text in ("", "[]", "{}", '{"gain": 1}'):
        with pytest.raises(FedfuseError, match="expected a search's state"):
            SearchState.from_json(text)

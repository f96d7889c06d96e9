"""Searches that outlive their process: what was paid is not paid again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fedfuse.config.feddtpt import SearchConfig
from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.accuracy import sample_batch
from fedfuse.feddtpt.centralized import search_centrally
from fedfuse.feddtpt.prompt import Prompt
from fedfuse.feddtpt.tuner import ClientPromptTuner
from fedfuse.http_service import ServiceError
from tests.feddtpt.fakes import EXAMPLES, MOOD, Function, masked_lm, understands

BATCH = sample_batch(EXAMPLES[:12], EXAMPLES[12:], (12, 12), 0)


def searcher(
    folder: Path, backend: Function, queries: int = 500, seed: int = 3, restarts: int = 0
) -> ClientPromptTuner:
    patience = 4 if restarts else 25
    config = SearchConfig(queries=queries, patience=patience, restarts=restarts, max_length=9)
    return ClientPromptTuner(folder, MOOD, BATCH, masked_lm(), backend, config, seed)


def start() -> Prompt:
    return masked_lm().encode("please read the text below")


def test_two_rounds(tmp_path: Path) -> None:
    backend = Function(understands)
    mine = searcher(tmp_path, backend)
    first = mine.search(start(), 1)
    assert 0 < first.queries <= 500
    assert first.queries == backend.asked.total()
    second = mine.search(first.prompt, 2)
    assert second.accuracy >= first.accuracy > 0.2
    assert first.queries + second.queries == backend.asked.total()
    assert set(backend.asked.values()) == {1}
    last, before = mine.last(2), mine.last(1)
    assert last is not None
    assert before is not None
    assert last.prompt == second.prompt
    # The second round went on with the first one's feedback.
    assert before.feedback.failed <= last.feedback.failed
    assert mine.last(0) is None


@pytest.mark.parametrize("call", [0, 1, 3, 17, 40])
def test_killed_in_the_middle_nothing_is_paid_twice(tmp_path: Path, call: int) -> None:
    undisturbed = Function(understands)
    expected = searcher(tmp_path / "a", undisturbed).search(start(), 1)
    stops = Function(
        understands, trouble=lambda n: ServiceError("gone", billed=False) if n == call else None
    )
    with pytest.raises(ServiceError):
        searcher(tmp_path / "b", stops).search(start(), 1)
    again = Function(understands)
    assert searcher(tmp_path / "b", again).search(start(), 1) == expected
    # What was on its way when it stopped had no answer.
    lost = stops.sizes[call]
    assert stops.asked.total() + again.asked.total() - lost == undisturbed.asked.total()
    assert max(again.asked.values()) == 1
    # A message that comes twice costs nothing.
    third = Function(understands)
    assert searcher(tmp_path / "b", third).search(start(), 1) == expected
    assert third.asked.total() == 0


def test_the_budget_is_the_rounds_however_often_it_is_asked(tmp_path: Path) -> None:
    backend = Function(understands)
    tuned = [searcher(tmp_path, backend, queries=70).search(start(), 1) for _ in range(3)]
    assert tuned[0] == tuned[1] == tuned[2]
    assert tuned[0].queries == backend.asked.total() <= 70


def test_what_an_earlier_run_left_is_not_taken_for_this_one(tmp_path: Path) -> None:
    first = searcher(tmp_path, Function(understands)).search(start(), 1)
    other, fresh = Function(understands), Function(understands)
    second = searcher(tmp_path, other, seed=4).search(start(), 1)
    assert second.prompt == searcher(tmp_path / "x", fresh, seed=4).search(start(), 1).prompt
    assert second != first
    # Answers of the same black box are still good, and the budget is whole.
    assert 0 < other.asked.total() == second.queries
    # Nor is its feedback, by a client that was away in the first round.
    assert searcher(tmp_path, other, seed=3).last(1) is None
    last = searcher(tmp_path, other, seed=4).last(2)
    assert last is not None
    assert last.prompt == second.prompt


def test_accuracy_is_paid_by_the_next_round(tmp_path: Path) -> None:
    backend = Function(understands)
    mine = searcher(tmp_path, backend)
    found = mine.accuracy(start(), EXAMPLES[:12], 1)
    assert backend.asked.total() == 12
    answers = [understands(MOOD.question(masked_lm().text(start()), e.text)) for e in EXAMPLES[:12]]
    assert found == pytest.approx(MOOD.right(answers, EXAMPLES[:12]) / 12)
    tuned = mine.search(start(), 1)
    assert tuned.queries == backend.asked.total()
    assert set(backend.asked.values()) == {1}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    mine = searcher(tmp_path, Function(understands))
    mine.search(start(), 1)
    (tmp_path / "search-1.json").write_text('{"search": 1}')
    with pytest.raises(FedfuseError, match=r"search-1\.json: expected a search .* got 'state'"):
        mine.search(start(), 1)


def test_restarts_are_paths_of_their_own_within_one_budget(tmp_path: Path) -> None:
    backend = Function(understands)
    mine = searcher(tmp_path, backend, queries=1500, restarts=5)
    tuned, paths = mine.search(start(), 1), mine.paths(start(), 1)
    assert 1 < len(paths) <= 6
    assert len({path.prompt for path in paths}) > 1
    assert tuned.accuracy == max(path.accuracy for path in paths)
    assert tuned.queries == mine.paid(start(), 1) == backend.asked.total() <= 1500
    assert set(backend.asked.values()) == {1}
    # The first path is what a search without restarts finds; the next knows what failed on it.
    alone = ClientPromptTuner(
        tmp_path / "alone",
        MOOD,
        BATCH,
        masked_lm(),
        Function(understands),
        replace(mine.config, restarts=0),
        3,
    )
    assert alone.paths(start(), 1) == paths[:1]
    last, first = mine.last(1), alone.last(1)
    assert last is not None
    assert first is not None
    assert first.feedback.failed < last.feedback.failed


def test_a_spent_budget_is_not_searched_on(tmp_path: Path) -> None:
    backend = Function(understands)
    tuner = searcher(tmp_path, backend, queries=120, restarts=50)
    assert len(tuner.paths(start(), 1)) < 10
    assert tuner.paid(start(), 1) == backend.asked.total() <= 120


@pytest.mark.parametrize("call", [3, 60, 100])
def test_killed_on_any_path_it_goes_on(tmp_path: Path, call: int) -> None:
    undisturbed = Function(understands)
    expected = searcher(tmp_path / "a", undisturbed, 1500, restarts=5).search(start(), 1)
    stops = Function(
        understands, trouble=lambda n: ServiceError("gone", billed=False) if n == call else None
    )
    with pytest.raises(ServiceError):
        searcher(tmp_path / "b", stops, 1500, restarts=5).search(start(), 1)
    again = Function(understands)
    assert searcher(tmp_path / "b", again, 1500, restarts=5).search(start(), 1) == expected
    assert (
        stops.asked.total() + again.asked.total() - stops.sizes[call] == undisturbed.asked.total()
    )


def test_a_central_search_goes_on_from_what_validates_best(tmp_path: Path) -> None:
    backend = Function(understands)
    tuner = searcher(tmp_path, backend, queries=900, restarts=3)
    firsts = [path.prompt for path in tuner.paths(start(), 1)]
    scores = dict.fromkeys(firsts, 0.3) | {start(): 0.3, firsts[1]: 0.5}
    asked: list[Prompt] = []

    def score(prompt: Prompt) -> float:
        asked.append(prompt)
        return scores.get(prompt, 0.1)

    prompt, queries = search_centrally(tuner, start(), 2, score)
    assert prompt == firsts[1]  # nothing of the second round validated better
    assert queries == backend.asked.total() <= 1800
    assert set(asked) >= {start(), *firsts}
    # The second round began with it.
    assert tuner.last(2) is not None
    assert tuner.paths(firsts[1], 2) == tuner.paths(firsts[1], 2)
    assert queries == backend.asked.total()

"""Who pays for what, in one process, in several, and in one that was killed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.black_box import BudgetExceeded, Reply
from fedfuse.feddtpt.ledger import Budget, Ledger, Spent, key_of
from fedfuse.feddtpt.meter import Meter
from tests.feddtpt.workers import Logged, ask_all

RESUMABLE_KEYS = Budget()


@pytest.fixture(params=["file", "memory"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "deep" / "ledger" if request.param == "file" else None) as made:
        yield made


def test_a_question_is_claimed_paid_and_answered_once(ledger: Ledger) -> None:
    claim = ledger.claim("me", {"a": 7, "b": 8}, RESUMABLE_KEYS)
    assert (claim.mine, claim.elsewhere, claim.answers) == (["a", "b"], [], {})
    assert ledger.spent("me") == Spent(2, 15)
    again = ledger.claim("you", {"b": 8, "c": 9}, RESUMABLE_KEYS)
    assert (again.mine, again.elsewhere) == (["c"], ["b"])
    assert ledger.spent("you") == Spent(1, 9)
    ledger.settle("me", {"a": (Reply("A", 3), 7), "b": (Reply("", 2), 8)})
    assert ledger.spent("me") == Spent(2, 5)
    assert ledger.claim("you", {"a": 7, "b": 8}, RESUMABLE_KEYS).answers == {"a": "A", "b": ""}
    assert ledger.spent("you") == Spent(1, 9)


def test_what_is_released_can_be_claimed_and_stays_paid(ledger: Ledger) -> None:
    ledger.claim("me", {"a": 7, "b": 7}, RESUMABLE_KEYS)
    ledger.settle("me", {"b": (Reply("B", 7), 7)})
    ledger.release(["a", "b"])
    look = ledger.look("me", {"a": 7, "b": 7}, RESUMABLE_KEYS)
    assert (look.mine, look.answers) == (["a"], {"b": "B"})
    assert ledger.spent("me") == Spent(2, 14)
    ledger.refund("me", [7])
    assert ledger.spent("me") == Spent(1, 7)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(queries=2), "budget of 'me': expected at most 2 queries, got 2 more after 1"),
        (Budget(tokens=20), "budget of 'me': expected at most 20 tokens, got 14 more after 7"),
    ],
)
def test_what_would_pass_the_budget_changes_nothing(
    ledger: Ledger, budget: Budget, message: str
) -> None:
    ledger.claim("me", {"a": 7}, budget)
    with pytest.raises(BudgetExceeded, match=message):
        ledger.claim("me", {"b": 7, "c": 7}, budget)
    assert ledger.spent("me") == Spent(1, 7)
    with pytest.raises(BudgetExceeded, match=message):
        ledger.look("me", {"b": 7, "c": 7}, budget)
    assert ledger.look("me", {"b": 7, "c": 7}, RESUMABLE_KEYS).mine == ["b", "c"]
    ledger.charge_again("me", [7], budget)
    with pytest.raises(BudgetExceeded):
        ledger.charge_again("me", [7], budget)
    # What has an answer is free, with nothing left.
    ledger.settle("me", {"a": (Reply("A", 7), 7)})
    assert ledger.claim("me", {"a": 7}, Budget(0, 0)).answers == {"a": "A"}


def test_many_keys_are_found(ledger: Ledger) -> None:
    keys = {f"{i}": 1 for i in range(1234)}
    ledger.claim("me", keys, RESUMABLE_KEYS)
    ledger.settle("me", {key: (Reply(key, 1), 1) for key in keys})
    assert ledger.look("me", keys, RESUMABLE_KEYS).answers == {key: key for key in keys}


def test_the_key_is_of_name_and_text() -> None:
    keys = [key_of("a", "bc"), key_of("ab", "c"), key_of("a", "b\0c"), key_of("", "abc")]
    assert len(set(keys)) == 4
    assert key_of("a", "bc") == keys[0]


def test_text_is_not_in_the_file(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        Meter(Logged(tmp_path / "log", 8), ledger, RESUMABLE_KEYS, "me").answer(["private words"])
    files = [file for file in tmp_path.iterdir() if file.name != "log"]
    assert files
    assert not any(b"private" in file.read_bytes() for file in files)
    assert not [
        file.name for file in files if file.name.endswith("lock") and "new" not in file.name
    ]


def test_another_owner_waits_until_the_first_has_gone(tmp_path: Path) -> None:
    first, second = Ledger(tmp_path / "ledger"), Ledger(tmp_path / "ledger")
    first.claim("me", {"a": 1}, RESUMABLE_KEYS)
    assert second.claim("you", {"a": 1}, RESUMABLE_KEYS).elsewhere == ["a"]
    first.close()
    assert second.claim("you", {"a": 1}, RESUMABLE_KEYS).mine == ["a"]
    second.close()


def test_no_ledger_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no database at all, only a text" * 50)
    with pytest.raises(
        FedfuseError, match="expected a ledger of fedfuse, got file is not a database"
    ):
        Ledger(tmp_path / "text")
    with pytest.raises(FedfuseError, match="expected a file"):
        Ledger(tmp_path / "text" / "ledger")
    with pytest.raises(FedfuseError, match="budget of queries: expected at least 0, got -1"):
        Budget(-1)


def run(*arguments: object) -> int | None:
    """A process that asks all, and how it ended."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=ask_all, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


def test_processes_together_ask_nothing_twice_and_pass_no_budget(tmp_path: Path) -> None:
    path, log = tmp_path / "ledger", tmp_path / "log"
    texts = [f"t{i}" for i in range(30)]
    context = multiprocessing.get_context("spawn")
    arguments = [(path, log, texts[i:] + texts[:i], 25) for i in (0, 0, 10)]
    processes = [context.Process(target=ask_all, args=a) for a in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    asked = log.read_text().split()
    assert len(asked) == len(set(asked)) == 25
    with Ledger(path) as ledger:
        assert ledger.spent("shared") == Spent(25, 25 * 4)


def test_a_killed_process_has_paid_for_what_it_asked(tmp_path: Path) -> None:
    path, log = tmp_path / "ledger", tmp_path / "log"
    texts = [f"t{i}" for i in range(10)]
    assert run(path, log, texts, 9, "t4") == -9
    with Ledger(path) as ledger:
        # The last question's tokens are the most they may have been.
        assert ledger.spent("shared") == Spent(5, 4 * 4 + 5)
    assert run(path, log, texts, 9) == 0
    # Only what has no answer is asked again, and the budget counts both attempts.
    assert log.read_text().split() == [f"t{i}" for i in (0, 1, 2, 3, 4, 4, 5, 6, 7)]
    with Ledger(path) as ledger:
        assert ledger.spent("shared").queries == 9

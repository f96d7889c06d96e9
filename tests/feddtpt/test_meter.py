"""Nothing is asked twice, failures are tried again, and no budget is passed, whatever happens."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.black_box import BudgetExceeded
from fedfuse.feddtpt.ledger import Budget, Ledger, Spent
from fedfuse.feddtpt.meter import Meter
from fedfuse.http_service import Retry, ServiceError, TransientError
from tests.feddtpt.fakes import Function

Trouble = Callable[[int], ServiceError | None]


def metered(backend: Function, budget: Budget | None = None, **options: object) -> Meter:
    return Meter(backend, Ledger(), budget or Budget(), "me", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_each_text_is_asked_once_and_in_batches(concurrency: int) -> None:
    backend = Function(str.upper, batch_size=2, concurrency=concurrency)
    meter = metered(backend)
    assert meter.answer(["a", "b", "a", "c"]) == ["A", "B", "A", "C"]
    assert meter.answer(["c", "d", "a"]) == ["C", "D", "A"]
    assert meter.answer([]) == []
    assert backend.asked == {"a": 1, "b": 1, "c": 1, "d": 1}
    assert sorted(backend.sizes) == [1, 1, 2]
    assert meter.spent == Spent(4, 12)
    assert meter.name == "function"


def test_no_more_calls_than_allowed_at_a_time() -> None:
    present, most, mutex = [0], [0], threading.Lock()

    def slow(text: str) -> str:
        with mutex:
            present[0] += 1
            most[0] = max(most[0], present[0])
        time.sleep(0.01)
        with mutex:
            present[0] -= 1
        return text

    backend = Function(slow, batch_size=1, concurrency=3)
    texts = [str(i) for i in range(12)]
    assert metered(backend).answer(texts) == texts
    assert most == [3]


def test_threads_share_what_is_being_asked() -> None:
    def slow(text: str) -> str:
        time.sleep(0.02)
        return text

    backend = Function(slow, batch_size=1)
    # Enough for each text once: a thread that waits for another's answer needs no money.
    meter = metered(backend, Budget(queries=5))
    texts = [str(i) for i in range(5)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(meter.answer, [texts, texts[::-1], texts, texts[2:]]))
    assert answers == [texts, texts[::-1], texts, texts[2:]]
    assert set(backend.asked.values()) == {1}


def test_what_costs_too_much_is_not_begun() -> None:
    backend = Function(str.upper)
    meter = metered(backend, Budget(queries=3))
    meter.answer(["a", "b"])
    with pytest.raises(BudgetExceeded, match="expected at most 3 queries, got 2 more after 2"):
        meter.answer(["a", "c", "d"])
    assert backend.asked.total() == 2
    assert meter.answer(["b", "c"]) == ["B", "C"]
    assert meter.answer(["a", "b", "c"]) == ["A", "B", "C"]


def test_tokens_are_those_that_were_used_and_before_that_the_most() -> None:
    backend = Function(str.upper, batch_size=1, tokens=lambda text: 4)
    meter = metered(backend, Budget(tokens=22))
    meter.answer(["a"])
    meter.answer(["b"])
    meter.answer(["c"])  # 8 + 10 at most
    assert meter.spent == Spent(3, 12)
    meter.answer(["d"])
    with pytest.raises(BudgetExceeded, match="expected at most 22 tokens, got 10 more after 16"):
        meter.answer(["e"])


def failing(calls: int, error: Callable[[], ServiceError]) -> Trouble:
    return lambda call: error() if call < calls else None


def test_failures_that_may_pass_are_tried_again_and_paid() -> None:
    waits: list[float] = []
    backend = Function(str.upper, trouble=failing(3, lambda: TransientError("busy")))
    retry = Retry(attempts=4, first=1.0, longest=3.0)
    meter = metered(backend, retry=retry, rng=random.Random(0), sleep=waits.append)
    assert meter.answer(["a", "b"]) == ["A", "B"]
    assert meter.spent == Spent(8, 3 * 20 + 6)
    same = random.Random(0)
    assert waits == [same.uniform(0, most) for most in (1.0, 2.0, 3.0)]


def test_a_service_is_left_alone_for_as_long_as_it_wants() -> None:
    waits: list[float] = []
    backend = Function(
        str.upper, trouble=failing(1, lambda: TransientError("busy", retry_after=7.5))
    )
    assert metered(backend, sleep=waits.append).answer(["a"]) == ["A"]
    assert waits == [7.5]
    backend = Function(
        str.upper, trouble=failing(1, lambda: TransientError("busy", retry_after=61))
    )
    with pytest.raises(ServiceError, match="busy; gave up after 1 attempts"):
        metered(backend, sleep=waits.append).answer(["a"])
    assert waits == [7.5]


def test_the_last_attempt_is_the_last() -> None:
    backend = Function(str.upper, trouble=lambda call: TransientError(f"busy {call}"))
    meter = metered(backend, retry=Retry(attempts=3, first=0.0))
    with pytest.raises(ServiceError, match="busy 2; gave up after 3 attempts"):
        meter.answer(["a"])
    assert meter.spent.queries == 3
    backend._trouble = lambda call: None
    assert meter.answer(["a"]) == ["A"]  # the claim was given up


def test_other_failures_are_not_tried_again_nor_paid() -> None:
    backend = Function(str.upper, trouble=failing(1, lambda: ServiceError("401", billed=False)))
    meter = metered(backend)
    with pytest.raises(ServiceError, match=r"^401$"):
        meter.answer(["a"])
    assert meter.spent == Spent(0, 0)
    assert len(backend.sizes) == 1


@pytest.mark.parametrize("concurrency", [1, 2])
def test_after_a_failure_nothing_more_is_sent(concurrency: int) -> None:
    backend = Function(
        str.upper,
        batch_size=1,
        concurrency=concurrency,
        trouble=lambda call: ServiceError("broken"),
    )
    meter = metered(backend)
    with pytest.raises(ServiceError):
        meter.answer([str(i) for i in range(50)])
    assert len(backend.sizes) <= concurrency
    assert meter.spent.queries == len(backend.sizes)


def test_attempts_count_against_the_budget() -> None:
    backend = Function(str.upper, trouble=lambda call: TransientError("busy"))
    meter = metered(backend, Budget(queries=3), retry=Retry(first=0.0))
    with pytest.raises(BudgetExceeded):
        meter.answer(["a"])
    assert len(backend.sizes) == 3
    assert meter.spent.queries == 3


@settings(deadline=None)
@given(
    budget=st.integers(0, 12),
    batch_size=st.integers(1, 3),
    troubles=st.lists(st.sampled_from(["", "", "busy", "refused", "broken"]), max_size=12),
    calls=st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=5), max_size=6),
)
def test_whatever_happens_the_budget_holds(
    budget: int, batch_size: int, troubles: list[str], calls: list[list[str]]
) -> None:
    """Also: what was answered once is never asked again."""
    kinds = {
        "busy": TransientError("busy"),
        "refused": TransientError("refused", billed=False),
        "broken": ServiceError("broken"),
    }
    backend = Function(
        str.upper,
        batch_size=batch_size,
        trouble=lambda call: kinds.get(troubles[call]) if call < len(troubles) else None,
    )
    meter = metered(backend, Budget(queries=budget), retry=Retry(attempts=3, first=0.0))
    answered: set[str] = set()
    for texts in calls:
        before, old = backend.asked.copy(), answered.copy()
        try:
            assert meter.answer(texts) == [text.upper() for text in texts]
            answered |= set(texts)
        except FedfuseError:
            pass
        assert not old & (backend.asked - before).keys()
    # Calls are whole batches; refused ones are not billed.
    refused = [i for i, kind in enumerate(troubles) if kind == "refused"]
    billed = sum(size for call, size in enumerate(backend.sizes) if call not in refused)
    assert meter.spent.queries == billed <= budget
    paid = backend.asked.total()
    assert meter.answer(sorted(answered)) == [text.upper() for text in sorted(answered)]
    assert backend.asked.total() == paid


def test_settings_that_cannot_be_are_refused() -> None:
    for wrong in ({"attempts": 0}, {"first": 2.0, "longest": 1.0}, {"longest": float("inf")}):
        with pytest.raises(FedfuseError, match="expected at least 1 attempt"):
            Retry(**wrong)  # type: ignore[arg-type]

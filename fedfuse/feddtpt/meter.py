"""A black box that is asked nothing twice and paid no more than its budget allows.

A text that was answered before, to anybody with this ledger, is free. For one that somebody else is
asking now, wait. Otherwise claim it, charge the most it may cost, send it, store the answer; after
a transient failure wait and charge again. ``Ledger`` says what survives a killed process.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from fedfuse.feddtpt.black_box import Backend, Reply
from fedfuse.feddtpt.ledger import Budget, Ledger, Spent, key_of
from fedfuse.http_service import Retry, ServiceError

_POLL_SECONDS = 0.05  # between looks at questions that somebody else is asking


class Meter:
    """A ``BlackBox`` that pays; threads may share it.

    Args:
        backend: source of the answers.
        ledger: answers and accounts; other meters and processes may use the same file.
        budget: budget of the account.
        account: name of the account that pays; its spending goes on where the ledger has it.
        retry: back-off after failures.
        rng: source of the jitter, which results do not depend on.
        sleep: function that waits for so many seconds.
    """

    def __init__(
        self,
        backend: Backend,
        ledger: Ledger,
        budget: Budget,
        account: str = "",
        *,
        retry: Retry | None = None,
        rng: random.Random | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name = backend.name
        self._backend = backend
        self._ledger = ledger
        self._budget = budget
        self._account = account
        self._retry = retry or Retry()
        self._rng = rng or random.Random()
        self._sleep = sleep

    @property
    def spent(self) -> Spent:
        """Payments of the account, by all processes and since the ledger began."""
        return self._ledger.spent(self._account)

    def answer(self, texts: Sequence[str]) -> list[str]:
        """One answer per text, in their order.

        Raises:
            BudgetExceeded: when the texts without an answer cost more than is left; none of them is
                sent then. Also when a further attempt would pass the budget, or another user of
                the account was faster; what was answered by then is in the ledger.
            ServiceError: when there is no answer, after as many attempts as allowed.
        """
        keys = {key_of(self.name, text): text for text in texts}
        most = {key: self._backend.most_tokens(text) for key, text in keys.items()}
        answers = self._ledger.look(self._account, most, self._budget).answers
        open_keys = [key for key in keys if key not in answers]
        size = self._backend.batch_size
        parts = [open_keys[i : i + size] for i in range(0, len(open_keys), size)]
        jobs = [{key: keys[key] for key in part} for part in parts]
        if self._backend.concurrency == 1:
            # In this thread: torch counts its threads per thread that calls it.
            for job in jobs:
                answers |= self._get(job)
        elif jobs:
            answers |= self._get_at_once(jobs)
        return [answers[key_of(self.name, text)] for text in texts]

    def _get_at_once(self, jobs: Sequence[Mapping[str, str]]) -> dict[str, str]:
        answers: dict[str, str] = {}
        failed = threading.Event()

        def get(job: Mapping[str, str]) -> dict[str, str]:
            if failed.is_set():  # nothing more is begun
                return {}
            try:
                return self._get(job)
            except BaseException:
                failed.set()
                raise

        with ThreadPoolExecutor(min(self._backend.concurrency, len(jobs))) as pool:
            try:
                for done in as_completed([pool.submit(get, job) for job in jobs]):
                    answers |= done.result()
            finally:
                failed.set()  # also when this thread is interrupted
        return answers

    def _get(self, questions: Mapping[str, str]) -> dict[str, str]:
        """Answers by key, of questions by key."""
        most = {key: self._backend.most_tokens(text) for key, text in questions.items()}
        answers: dict[str, str] = {}
        while most:
            claim = self._ledger.claim(self._account, most, self._budget)
            answers |= claim.answers
            if claim.mine:
                answers |= self._pay({key: questions[key] for key in claim.mine}, most)
            most = {key: most[key] for key in claim.elsewhere}
            if most:
                self._sleep(_POLL_SECONDS)
        return answers

    def _pay(self, questions: Mapping[str, str], most: Mapping[str, int]) -> dict[str, str]:
        """Ask questions that are claimed and charged."""
        try:
            replies = self._ask(list(questions.values()), [most[key] for key in questions])
            charged = {
                key: (reply, most[key]) for key, reply in zip(questions, replies, strict=True)
            }
            self._ledger.settle(self._account, charged)
            return {key: reply.text for key, (reply, _) in charged.items()}
        finally:
            self._ledger.release(list(questions))  # of what has an answer there is nothing to give

    def _ask(self, texts: list[str], most: list[int]) -> list[Reply]:
        failures = 0
        while True:
            try:
                return self._backend.ask(texts)
            except ServiceError as error:
                if not error.billed:
                    self._ledger.refund(self._account, most)
                failures += 1
                self._sleep(self._retry.pause(error, failures, self._rng))
            self._ledger.charge_again(self._account, most, self._budget)

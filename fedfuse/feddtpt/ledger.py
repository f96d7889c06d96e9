"""Ledger of paid answers and of payments: one SQLite file for any number of processes.

Before a question is sent, one transaction claims it and charges the most that it may cost. With the
answer, a second one stores it and charges what it did cost instead. So a process that is killed
in between has been charged too much rather than too little, and no two processes ask the same
question. A claim is good as long as its owner lives: each holds the lock of a file, which the
system releases when a process ends, however it ends.

The file holds digests of questions, never their text, and answers.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from fedfuse.errors import FedfuseError, check
from fedfuse.feddtpt.black_box import BudgetExceeded, Reply

_TABLES = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, answer TEXT, owner TEXT NOT NULL  -- no answer: claimed by its owner
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS accounts (
    name TEXT PRIMARY KEY, queries INTEGER NOT NULL, tokens INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cuts (name TEXT PRIMARY KEY, answers INTEGER NOT NULL) WITHOUT ROWID;
"""
_PATIENCE = 60.0  # seconds to wait for other processes' transactions, which take milliseconds
_MOST_VARIABLES = 500  # in one statement; older SQLite allows 999


@dataclass(frozen=True, slots=True)
class Spent:
    """Payments of an account.

    Attributes:
        queries: attempts at a text that may have been billed.
        tokens: tokens of questions and answers; of an attempt without an answer, the most that it
            can have had.
    """

    queries: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of what an account may pay; None for no limit.

    Attributes:
        queries: as in ``Spent``, at least 0.
        tokens: as in ``Spent``, at least 0.
    """

    queries: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("queries", "tokens"):
            value = getattr(self, name)
            check(f"budget of {name}", value, "at least 0", value is None or value >= 0)

    def check(self, account: str, spent: Spent, more: Spent) -> None:
        """Refuse to spend more than is left; what costs nothing is never refused.

        Raises:
            BudgetExceeded: naming the account, what it has spent, and the limit.
        """
        for name in ("queries", "tokens"):
            limit, had, wanted = (getattr(x, name) for x in (self, spent, more))
            if limit is not None and wanted > 0 and had + wanted > limit:
                raise BudgetExceeded(
                    f"budget of {account!r}: expected at most {limit} {name}, got {wanted} more "
                    f"after {had}"
                )


@dataclass(frozen=True, slots=True)
class Claim:
    """Result of looking questions up, or of claiming them.

    Attributes:
        answers: answers by key, of the questions that have one.
        mine: keys of the questions to ask now.
        elsewhere: keys of the questions that another process is asking now.
    """

    answers: dict[str, str] = field(default_factory=dict)
    mine: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)


def key_of(name: str, text: str) -> str:
    """SHA-256 (hex) of a backend's name and the whole text that it is sent."""
    return hashlib.sha256(json.dumps([name, text]).encode()).hexdigest()


class Ledger:
    """The ledger's file, as one process sees it; its threads may share it.

    Args:
        path: path of the file, which is made where there is none; None keeps it in memory.

    Raises:
        FedfuseError: when the file cannot be used.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._owner = secrets.token_hex(8)
        self._mutex = threading.Lock()
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise FedfuseError(f"{path}: expected a file, got {error.strerror}") from error
            self._alive = self._lock(self._owner)
            self._alive.acquire()
        # SQLite does not wait when two processes set up one file at the same time.
        with self._errors(), self._lock("new") if path is not None else nullcontext():
            # Transactions are opened by hand; see _transaction.
            self._db = sqlite3.connect(
                path or ":memory:", _PATIENCE, isolation_level=None, check_same_thread=False
            )
            # A transaction is on the disk when it has ended: no power cut gives money back.
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_TABLES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self._db.close()
        if self._path is not None:
            self._alive.release()
            Path(self._alive.lock_file).unlink(missing_ok=True)

    def spent(self, account: str) -> Spent:
        """Payments of an account, by all processes."""
        with self._mutex, self._errors():
            return self._spent(account)

    def cut(self, account: str) -> int:
        """Number of answers that an account paid for and that were cut off."""
        query = "SELECT answers FROM cuts WHERE name = ?"
        with self._mutex, self._errors():
            row = self._db.execute(query, (account,)).fetchone()
        return int(row[0]) if row else 0

    def look(self, account: str, most_tokens: Mapping[str, int], budget: Budget) -> Claim:
        """Look questions up: as ``claim``, but nothing is claimed or charged."""
        with self._transaction():  # one moment's answers, claims and accounts
            claim = self._look(most_tokens)
            more = Spent(len(claim.mine), sum(most_tokens[key] for key in claim.mine))
            budget.check(account, self._spent(account), more)
        return claim

    def claim(self, account: str, most_tokens: Mapping[str, int], budget: Budget) -> Claim:
        """Claim the questions that nobody has asked yet, and charge for them.

        Args:
            account: name of the account that pays.
            most_tokens: upper bound of each question's tokens, by its key.
            budget: budget of the account.

        Raises:
            BudgetExceeded: when it would be exceeded; nothing is claimed or charged then.
        """
        with self._transaction():
            claim = self._look(most_tokens)
            self._charge(account, [most_tokens[key] for key in claim.mine], budget)
            rows = [(key, self._owner) for key in claim.mine]
            self._db.executemany("REPLACE INTO answers VALUES (?, NULL, ?)", rows)
        return claim

    def charge_again(self, account: str, most_tokens: Collection[int], budget: Budget) -> None:
        """Charge for another attempt at claimed questions.

        Raises:
            BudgetExceeded: when the budget would be exceeded; nothing is charged then.
        """
        with self._transaction():
            self._charge(account, most_tokens, budget)

    def refund(self, account: str, most_tokens: Collection[int]) -> None:
        """Refund the charge for an attempt that was certainly not billed."""
        with self._transaction():
            self._add(account, -len(most_tokens), -sum(most_tokens))

    def settle(self, account: str, replies: Mapping[str, tuple[Reply, int]]) -> None:
        """Store answers, and charge their tokens in place of the upper bounds.

        Args:
            account: name of the account that pays.
            replies: reply, and the tokens that were charged for it, by key.
        """
        with self._transaction():
            rows = [(reply.text, key) for key, (reply, _) in replies.items()]
            self._db.executemany("UPDATE answers SET answer = ? WHERE key = ?", rows)
            change = sum(reply.tokens - most for reply, most in replies.values())
            self._add(account, 0, change)
            if cut := sum(reply.cut for reply, _ in replies.values()):
                self._db.execute(
                    "INSERT INTO cuts VALUES (?, ?) "
                    "ON CONFLICT (name) DO UPDATE SET answers = answers + excluded.answers",
                    (account, cut),
                )

    def release(self, keys: Collection[str]) -> None:
        """Give up claims, so that others may ask; charges stay."""
        rows = [(key, self._owner) for key in keys]
        with self._transaction():
            self._db.executemany(
                "DELETE FROM answers WHERE key = ? AND owner = ? AND answer IS NULL", rows
            )

    def _look(self, keys: Collection[str]) -> Claim:
        rows: dict[str, tuple[str | None, str]] = {}
        wanted = list(keys)
        for first in range(0, len(wanted), _MOST_VARIABLES):
            part = wanted[first : first + _MOST_VARIABLES]
            marks = ", ".join("?" * len(part))
            found = self._db.execute(f"SELECT * FROM answers WHERE key IN ({marks})", part)
            rows |= {key: (answer, owner) for key, answer, owner in found}
        claim = Claim()
        lives = {owner: self._lives(owner) for owner in {o for a, o in rows.values() if a is None}}
        for key in wanted:
            answer, owner = rows.get(key, (None, ""))
            if answer is not None:
                claim.answers[key] = answer
            elif lives.get(owner):
                claim.elsewhere.append(key)
            else:
                claim.mine.append(key)
        return claim

    def _spent(self, account: str) -> Spent:
        query = "SELECT queries, tokens FROM accounts WHERE name = ?"
        row = self._db.execute(query, (account,)).fetchone()
        return Spent(*row) if row else Spent()

    def _charge(self, account: str, most_tokens: Collection[int], budget: Budget) -> None:
        more = Spent(len(most_tokens), sum(most_tokens))
        budget.check(account, self._spent(account), more)
        self._add(account, more.queries, more.tokens)

    def _add(self, account: str, queries: int, tokens: int) -> None:
        self._db.execute(
            "INSERT INTO accounts VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE "
            "SET queries = queries + excluded.queries, tokens = tokens + excluded.tokens",
            (account, queries, tokens),
        )

    def _lock(self, owner: str) -> FileLock:
        # Any thread may let it go, not only the one that made it.
        return FileLock(f"{self._path}-{owner}.lock", thread_local=False)

    def _lives(self, owner: str) -> bool:
        if owner == self._owner:
            return True
        lock = self._lock(owner)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)
        return False

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, and nobody else's in between."""
        with self._mutex, self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            place = self._path or "ledger in memory"
            raise FedfuseError(f"{place}: expected a ledger of fedfuse, got {error}") from error

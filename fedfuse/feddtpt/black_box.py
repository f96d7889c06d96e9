"""Language models that show the text of their answers alone, and their errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fedfuse.errors import FedfuseError


class BlackBox(Protocol):
    """Text in, text out. ``Meter`` makes one of any ``Backend``."""

    name: str

    def answer(self, texts: Sequence[str]) -> list[str]:
        """One answer per text, in their order."""
        ...


@dataclass(frozen=True, slots=True)
class Reply:
    """Reply of a backend to one text.

    Attributes:
        text: the answer.
        tokens: number of tokens paid for, of the question and of the answer.
        cut: whether the answer ends where no more tokens were allowed.
    """

    text: str
    tokens: int
    cut: bool = False


class Backend(Protocol):
    """Source of answers, without cache, budget or second attempt; these are ``Meter``'s.

    Attributes:
        name: all that an answer depends on besides the text: the model and how it decodes.
        batch_size: texts in one call, at most; at least 1.
        concurrency: calls at a time, at most; at least 1.
    """

    name: str
    batch_size: int
    concurrency: int

    def most_tokens(self, text: str) -> int:
        """Upper bound of the tokens that one attempt at a text costs."""
        ...

    def ask(self, texts: Sequence[str]) -> list[Reply]:
        """Attempt once; a reply per text, in their order.

        Raises:
            ServiceError: when there is no answer; ``TransientError``, when there may be one later.
        """
        ...


class BudgetExceeded(FedfuseError):
    """A request would exceed the budget; nothing of it that had no answer yet was sent."""

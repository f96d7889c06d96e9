"""Language models of which one sees the answer's text alone, and what can go wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fedfuse.errors import FedfuseError


class BlackBox(Protocol):
    """Text in, text out. ``Meter`` makes one of any ``Backend``."""

    name: str

    def answer(self, texts: Sequence[str]) -> list[str]:
        """An answer per text, in their order."""
        ...


@dataclass(frozen=True, slots=True)
class Reply:
    """What a backend sends back for one text.

    Attributes:
        text: the answer.
        tokens: that were paid for: those of the question and those of the answer.
    """

    text: str
    tokens: int


class Backend(Protocol):
    """Where answers come from: no cache, no budget, no second attempt; these are ``Meter``'s.

    Attributes:
        name: all that an answer depends on besides the text: the model and how it decodes.
        batch_size: most texts in one call, at least 1.
        concurrency: most calls at a time, at least 1.
    """

    name: str
    batch_size: int
    concurrency: int

    def most_tokens(self, text: str) -> int:
        """What one attempt at a text may cost, at most."""
        ...

    def ask(self, texts: Sequence[str]) -> list[Reply]:
        """One attempt; a reply per text, in their order.

        Raises:
            BlackBoxError: when there is no answer; ``Transient``, when there may be one next time.
        """
        ...


class BlackBoxError(FedfuseError):
    """A language model did not answer.

    Attributes:
        billed: whether the attempt may have been paid for.
    """

    def __init__(self, message: str, *, billed: bool = True) -> None:
        super().__init__(message)
        self.billed = billed


class Transient(BlackBoxError):
    """An attempt failed, and another one may not.

    Attributes:
        retry_after: seconds that the service wants to be left alone; 0 where it does not say.
    """

    def __init__(self, message: str, *, billed: bool = True, retry_after: float = 0.0) -> None:
        super().__init__(message, billed=billed)
        self.retry_after = retry_after


class BudgetSpent(FedfuseError):
    """What is asked for would pass the budget; none of it that was not answered yet was sent."""

"""What a search has learnt about edits, and how that shifts its next proposals.

Edits are remembered by the tokens that they touch and not by position, which moves with every
insertion and deletion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray

from fedfuse.errors import FedfuseError

How = Literal["replace", "insert", "delete"]
NO_TOKEN = -1

# A place where something helped is drawn more often, one where something harmed less.
_RISE, _MOST_WEIGHT = 1.3, 3.0
_FALL, _LEAST_WEIGHT = 0.8, 0.3
# What a token that helped is worth elsewhere, nats of log-probability.
_CREDIT, _MOST_CREDIT = 1.0, 2.0


@dataclass(frozen=True, slots=True)
class Edit:
    """One change of a prompt.

    Attributes:
        how: what is done.
        position: of the token that goes, or before which one comes.
        old: the token at that position, ``NO_TOKEN`` at the end.
        new: the token that comes, ``NO_TOKEN`` for a deletion.
    """

    how: How
    position: int
    old: int
    new: int

    def apply(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """The tokens after it."""
        added = () if self.how == "delete" else (self.new,)
        rest = self.position + (self.how != "insert")
        return (*tokens[: self.position], *added, *tokens[rest:])


@dataclass(slots=True)
class Feedback:
    """The history of a search.

    Attributes:
        weights: by kind of edit and the token at its place, how often the place is drawn; 1 if
            nothing is known.
        credit: by token, nats added to its log-probability, for it helped somewhere.
        failed: edits by kind, token at their place and new token that were tried in vain.
    """

    weights: dict[tuple[How, int], float] = field(default_factory=dict)
    credit: dict[int, float] = field(default_factory=dict)
    failed: set[tuple[How, int, int]] = field(default_factory=set)

    def places(self, how: How, tokens: Sequence[int]) -> Float64[ndarray, " n"]:
        """Probability of each place of an edit, by the tokens there."""
        weights = np.array([self.weights.get((how, token), 1.0) for token in tokens])
        normed: Float64[ndarray, " n"] = weights / weights.sum()
        return normed

    def bonus(self, ids: Int64[ndarray, " m"]) -> Float64[ndarray, " m"]:
        """Nats to add to the log-probabilities of tokens."""
        return np.array([self.credit.get(int(token), 0.0) for token in ids], dtype=np.float64)

    def open(self, how: How, old: int, ids: Int64[ndarray, " m"]) -> Bool[ndarray, " m"]:
        """Which tokens have not failed at such a place."""
        return np.array([(how, old, int(token)) not in self.failed for token in ids], dtype=bool)

    def helped(self, edit: Edit) -> None:
        """Take note of an edit that raised the accuracy."""
        place = (edit.how, edit.old)
        self.weights[place] = min(_MOST_WEIGHT, self.weights.get(place, 1.0) * _RISE)
        if edit.new != NO_TOKEN:
            self.credit[edit.new] = min(_MOST_CREDIT, self.credit.get(edit.new, 0.0) + _CREDIT)
        if edit.how != "insert":
            self.credit.pop(edit.old, None)

    def rejected(self, edit: Edit, *, worse: bool) -> None:
        """Take note of an edit that was not taken."""
        self.failed.add((edit.how, edit.old, edit.new))
        if worse:
            place = (edit.how, edit.old)
            self.weights[place] = max(_LEAST_WEIGHT, self.weights.get(place, 1.0) * _FALL)

    def to_plain(self) -> dict[str, Any]:
        """Lists of numbers and words, as JSON has them; see ``from_plain``."""
        return {
            "weights": [[how, token, w] for (how, token), w in sorted(self.weights.items())],
            "credit": [[token, nats] for token, nats in sorted(self.credit.items())],
            "failed": [list(edit) for edit in sorted(self.failed)],
        }

    @classmethod
    def from_plain(cls, plain: Any) -> Feedback:
        """Read what ``to_plain`` wrote.

        Raises:
            FedfuseError: for anything else.
        """
        try:
            return cls(
                {(how, int(token)): float(weight) for how, token, weight in plain["weights"]},
                {int(token): float(nats) for token, nats in plain["credit"]},
                {(how, int(old), int(new)) for how, old, new in plain["failed"]},
            )
        except (LookupError, TypeError, ValueError) as error:
            raise FedfuseError(f"feedback {str(plain)[:80]!r}; allowed: a search's") from error

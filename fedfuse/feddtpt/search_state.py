"""State of a client's search: edits, the feedback on them, and all that a search goes on from.

Feedback remembers edits by the tokens that they touch and not by position, which moves with every
insertion and deletion.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray

from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.prompt import Prompt

How = Literal["replace", "insert", "delete"]
NO_TOKEN = -1
# Fields of a search state that JSON holds as they are.
_PLAIN = ("gain", "queries_before", "accuracy", "draws", "misses", "since_gain")

# A place where something helped is drawn more often, one where something harmed less.
_RISE, _MOST_WEIGHT = 1.3, 3.0
_FALL, _LEAST_WEIGHT = 0.8, 0.3
# What a token that helped is worth elsewhere, nats of log-probability.
_CREDIT, _MOST_CREDIT = 1.0, 2.0


@dataclass(frozen=True, slots=True)
class Edit:
    """One change of a prompt.

    Attributes:
        how: kind of the change.
        position: index of the token that goes, or before which one comes, from 0.
        old: id of the token at that position, ``NO_TOKEN`` at the end.
        new: id of the token that comes, ``NO_TOKEN`` for a deletion.
    """

    how: How
    position: int
    old: int
    new: int

    def apply(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens of a prompt after the edit."""
        added = () if self.how == "delete" else (self.new,)
        rest = self.position + (self.how != "insert")
        return (*tokens[: self.position], *added, *tokens[rest:])


@dataclass(slots=True)
class Feedback:
    """Effects of the edits so far, by which the next ones are drawn (the paper's "feedback").

    Attributes:
        weights: how often a place is drawn, by kind of edit and the token there; 1 if nothing is
            known.
        credit: nats added to the log-probability of a token that helped somewhere, by its id.
        failed: edits tried in vain: kind, token at their place, new token.
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
        """``[m]`` nats to add to the log-probabilities of tokens ``[m]``."""
        return np.array([self.credit.get(int(token), 0.0) for token in ids], dtype=np.float64)

    def open(self, how: How, old: int, ids: Int64[ndarray, " m"]) -> Bool[ndarray, " m"]:
        """``[m]`` mask of the tokens that have not failed at such a place."""
        return np.array([(how, old, int(token)) not in self.failed for token in ids], dtype=bool)

    def helped(self, edit: Edit) -> None:
        """Record an edit that raised the accuracy."""
        place = (edit.how, edit.old)
        self.weights[place] = min(_MOST_WEIGHT, self.weights.get(place, 1.0) * _RISE)
        if edit.new != NO_TOKEN:
            self.credit[edit.new] = min(_MOST_CREDIT, self.credit.get(edit.new, 0.0) + _CREDIT)
        if edit.how != "insert":
            self.credit.pop(edit.old, None)

    def rejected(self, edit: Edit, *, worse: bool) -> None:
        """Record an edit that was not taken."""
        self.failed.add((edit.how, edit.old, edit.new))
        if worse:
            place = (edit.how, edit.old)
            self.weights[place] = max(_LEAST_WEIGHT, self.weights.get(place, 1.0) * _FALL)

    def to_plain(self) -> dict[str, Any]:
        """As lists of numbers and words for JSON; see ``from_plain``."""
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
            raise FedfuseError(f"expected a search's feedback, got {str(plain)[:80]!r}") from error


@dataclass(frozen=True, slots=True)
class EditStep:
    """One evaluated edit of a search.

    Attributes:
        edit: the edit.
        accuracy: accuracy of the prompt after it, in [0, 1]; None where the evaluation was given
            up because it could not reach the present one.
        taken: whether the search went on from there.
        queries: number of queries paid for the search by then.
    """

    edit: Edit
    accuracy: float | None
    taken: bool
    queries: int


@dataclass(slots=True)
class SearchState:
    """All that a search goes on from, between two draws.

    Attributes:
        prompt: best prompt so far.
        gain: measured gain of each of its tokens.
        accuracy: its accuracy on the batch, in [0, 1]; None before the first evaluation.
        queries_before: queries that the account had paid when the search began.
        draws: number of edits drawn so far.
        misses: number of draws in a row that brought nothing new.
        since_gain: number of evaluations in a row without a gain.
        seen: token ids of all prompts evaluated.
        feedback: feedback; may go on in the client's next search.
        trace: evaluated edits in order.
    """

    prompt: Prompt
    gain: tuple[float, ...]
    queries_before: int
    accuracy: float | None = None
    draws: int = 0
    misses: int = 0
    since_gain: int = 0
    seen: set[tuple[int, ...]] = field(default_factory=set)
    feedback: Feedback = field(default_factory=Feedback)
    trace: list[EditStep] = field(default_factory=list)

    def to_json(self) -> str:
        """As JSON; see ``from_json``."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        plain |= {
            "prompt": self.prompt.tokens,
            "seen": sorted(self.seen),
            "feedback": self.feedback.to_plain(),
            "trace": [asdict(step) for step in self.trace],
        }
        return json.dumps(plain)

    @classmethod
    def from_json(cls, text: str) -> SearchState:
        """Read what ``to_json`` wrote.

        Raises:
            FedfuseError: for anything else.
        """
        try:
            plain = json.loads(text)
            return cls(
                **{name: plain[name] for name in _PLAIN} | {"gain": tuple(plain["gain"])},
                prompt=Prompt(tuple(plain["prompt"])),
                seen={tuple(tokens) for tokens in plain["seen"]},
                feedback=Feedback.from_plain(plain["feedback"]),
                trace=[
                    EditStep(**step | {"edit": Edit(**step["edit"])}) for step in plain["trace"]
                ],
            )
        except (LookupError, TypeError, ValueError) as error:
            raise FedfuseError(f"expected a search's state, got {text[:80]!r}") from error

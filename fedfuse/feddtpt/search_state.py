"""All that a client's search is, between two draws: what is kept, so that it can go on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.feedback import Edit, Feedback
from fedfuse.feddtpt.prompt import Prompt

# What is in JSON as it is here.
_PLAIN = ("gain", "queries_before", "accuracy", "draws", "misses", "since_gain")


@dataclass(frozen=True, slots=True)
class Step:
    """One evaluation.

    Attributes:
        edit: what was tried.
        accuracy: of the prompt after it; None where it was given up below the present one.
        taken: whether the search went on from there.
        queries: paid for the search by then.
    """

    edit: Edit
    accuracy: float | None
    taken: bool
    queries: int


@dataclass(slots=True)
class SearchState:
    """All that a search is, between two draws.

    Attributes:
        prompt: the best so far.
        gain: per token of it.
        accuracy: of it on the batch; None before the first evaluation.
        queries_before: what the account had paid when the search began.
        draws: edits drawn so far.
        misses: draws in a row that brought nothing new.
        since_gain: evaluations in a row without a gain.
        seen: all prompts evaluated.
        feedback: history; may go on in the client's next search.
        trace: the evaluations.
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
    trace: list[Step] = field(default_factory=list)

    def to_json(self) -> str:
        """As text; see ``from_json``."""
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
                trace=[Step(**step | {"edit": Edit(**step["edit"])}) for step in plain["trace"]],
            )
        except (LookupError, TypeError, ValueError) as error:
            raise FedfuseError(f"search state {text[:80]!r}; allowed: a search's") from error

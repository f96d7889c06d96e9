"""Which of several prompts becomes the next global one: the best on a set of the server's own.

No client searched on that set, so a prompt cannot be chosen for what it happens to suit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.prompt import Prompt


@dataclass(frozen=True, slots=True)
class Choice:
    """The prompt that was chosen, and how all did.

    Attributes:
        name: of the chosen candidate.
        prompt: the chosen one.
        scores: of each candidate.
    """

    name: str
    prompt: Prompt
    scores: dict[str, float]


def choose(candidates: Mapping[str, Prompt], score: Callable[[Prompt], float]) -> Choice:
    """The candidate of the highest score; of equal ones the first.

    Args:
        candidates: by name: the previous prompt first, which stays unless another does better, then
            the aggregated one, and clients' own where they may compete.
        score: accuracy on the validation set, in [0, 1]; called once for equal candidates.

    Raises:
        FedfuseError: for no candidates.
    """
    if not candidates:
        raise FedfuseError("no candidate to choose from; allowed: at least one")
    once = {prompt: score(prompt) for prompt in dict.fromkeys(candidates.values())}
    scores = {name: once[prompt] for name, prompt in candidates.items()}
    best = max(scores, key=lambda name: scores[name])
    return Choice(best, candidates[best], scores)

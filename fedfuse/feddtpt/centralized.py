"""One search with everybody's examples, by a federation's means.

As many rounds, each from the best prompt so far; as many paths in a round as there are clients; and
the same choice on validation examples. What is left of a federation is that examples stay apart and
that prompts are made one.
"""

from __future__ import annotations

from collections.abc import Callable

from fedfuse.feddtpt.prompt import Prompt
from fedfuse.feddtpt.selection import best_candidate
from fedfuse.feddtpt.tuner import ClientPromptTuner


def search_centrally(
    tuner: ClientPromptTuner, start: Prompt, rounds: int, score: Callable[[Prompt], float]
) -> tuple[Prompt, int]:
    """Search for so many rounds.

    Args:
        tuner: with everybody's examples; its queries are a round's.
        start: prompt that the first round begins with.
        rounds: 1 or more.
        score: accuracy on the validation set, in [0, 1].

    Returns:
        The prompt, and the queries that were paid but for those of ``score``.

    Raises:
        BudgetExceeded, ServiceError: as ``ClientPromptTuner.paths``.
    """
    prompt, queries = start, 0
    for number in range(1, rounds + 1):
        found = tuner.paths(prompt, number)
        queries += tuner.paid(prompt, number)
        candidates = {"previous": prompt, **{str(i): path.prompt for i, path in enumerate(found)}}
        best, _ = best_candidate(candidates, score)
        prompt = candidates[best]
    return prompt, queries

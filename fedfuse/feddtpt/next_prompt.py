"""From the clients' prompts to the next global one: aggregate, then choose.

Candidates compete on a validation set of the server's (``choose``): the previous prompt, the
aggregated one and, with choice ``all``, each client's. With choice ``none`` the aggregated prompt
is the next one, as in the paper. The baseline of the best single client has no aggregated prompt;
without a choice it believes the clients' own accuracies. A round with one client has nothing to
aggregate either (the thrifty variant of arXiv 2506.14929).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedfuse.config.feddtpt_settings import AggregationSettings
from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.aggregation import Aggregation, aggregate
from fedfuse.feddtpt.masked_lm import MaskedLM
from fedfuse.feddtpt.prompt import Prompt, TunedPrompt
from fedfuse.feddtpt.selection import Choice, choose

PREVIOUS, AGGREGATED = "previous", "aggregated"


@dataclass(frozen=True, slots=True)
class AggregationResult:
    """The next prompt, and where it comes from.

    Attributes:
        choice: which candidate it is; its scores are accuracies on the validation set, empty where
            nothing was compared there.
        aggregation: how the clients' prompts were made one; None where they were not.
    """

    choice: Choice
    aggregation: Aggregation | None


def next_prompt(
    tuned: Mapping[str, TunedPrompt],
    lm: MaskedLM,
    previous: Prompt,
    settings: AggregationSettings | None,
    choice: str,
    score: Callable[[Prompt], float],
) -> AggregationResult:
    """The next global prompt.

    Args:
        tuned: the prompt of each client by its name, at least one.
        lm: embeds tokens, and says what a prompt's text is tokenized into.
        previous: the global prompt so far.
        settings: of the aggregation; None for the best single client's.
        choice: one of ``CHOICES``.
        score: accuracy on the validation set, in [0, 1]; not asked with choice ``none``.

    Raises:
        FedfuseError: for no prompts.
    """
    if not tuned:
        raise FedfuseError("no tuned prompt; allowed: at least one")
    own = {name: tuned[name].prompt for name in sorted(tuned)}
    if settings is None or len(tuned) == 1:
        aggregation, candidates = None, own
    else:
        aggregation = aggregate(tuned, lm.embed, previous, settings)
        candidates = {AGGREGATED: lm.canonical(aggregation.prompt)}
        candidates |= own if choice == "all" else {}
    if choice != "none":
        return AggregationResult(choose({PREVIOUS: previous, **candidates}, score), aggregation)
    best = max(candidates, key=lambda name: tuned[name].accuracy if name in tuned else 0.0)
    return AggregationResult(Choice(best, candidates[best], {}), aggregation)

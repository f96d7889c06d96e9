"""From the clients' prompts to the next global one: aggregate, then select.

Candidates compete on a validation set of the server's: the previous prompt, the aggregated one and,
with candidates ``all``, each client's. No client searched on that set, so a prompt cannot be
selected for what it happens to suit. With candidates ``none`` the aggregated prompt is the next
one, as in the paper. The baseline of the best single client has no aggregated prompt; without a
validation set it believes the clients' own accuracies. A round with one client has nothing to
aggregate either (the thrifty variant of arXiv 2506.14929).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedfuse.config.feddtpt import BEST_CLIENT, AggregationConfig
from fedfuse.errors import check
from fedfuse.feddtpt.aggregation import AggregatedPrompt, aggregate
from fedfuse.feddtpt.masked_lm import MaskedLM
from fedfuse.feddtpt.prompt import Prompt, TunedPrompt


@dataclass(frozen=True, slots=True)
class AggregationResult:
    """The next global prompt, and where it comes from.

    Attributes:
        name: name of the selected candidate: ``previous``, ``aggregated`` or a client's.
        prompt: the selected prompt.
        scores: accuracy of each candidate on the validation set, in [0, 1]; empty where none was
            measured.
        aggregated: the clients' prompts made one; None where they were not.
    """

    name: str
    prompt: Prompt
    scores: dict[str, float]
    aggregated: AggregatedPrompt | None = None


def select_prompt(
    tuned: Mapping[str, TunedPrompt],
    lm: MaskedLM,
    previous: Prompt,
    config: AggregationConfig,
    candidates: str,
    score: Callable[[Prompt], float],
    seed: int = 0,
) -> AggregationResult:
    """Aggregate the clients' prompts and select the next global one.

    Args:
        tuned: tuned prompt of each client by its name, at least one.
        lm: masked language model, which embeds tokens and tokenizes a prompt's text.
        previous: global prompt so far.
        config: the aggregation.
        candidates: one of ``CANDIDATES``.
        score: accuracy on the validation set, in [0, 1]; not called with candidates ``none``.
        seed: seed of k-means.

    Raises:
        FedfuseError: for no prompts.
    """
    check("tuned prompts", "none", "at least one", tuned)
    own = {name: tuned[name].prompt for name in sorted(tuned)}
    if config.method == BEST_CLIENT or len(tuned) == 1:
        aggregated, competing = None, own
    else:
        aggregated = aggregate(tuned, lm.embed, previous, config, seed)
        competing = {"aggregated": lm.canonical(aggregated.prompt)}
        competing |= own if candidates == "all" else {}
    if candidates == "none":
        best = max(competing, key=lambda name: tuned[name].accuracy if name in tuned else 0.0)
        return AggregationResult(best, competing[best], {}, aggregated)
    competing = {"previous": previous, **competing}
    best, scores = best_candidate(competing, score)
    return AggregationResult(best, competing[best], scores, aggregated)


def best_candidate(
    candidates: Mapping[str, Prompt], score: Callable[[Prompt], float]
) -> tuple[str, dict[str, float]]:
    """Name of the candidate of the highest score, the first of equal ones; and all scores.

    Args:
        candidates: candidates by name; the first one stays unless another does better.
        score: accuracy on the validation set, in [0, 1]; called once for equal candidates.

    Raises:
        FedfuseError: for no candidates.
    """
    check("candidates", "none", "at least one", candidates)
    once = {prompt: score(prompt) for prompt in dict.fromkeys(candidates.values())}
    scores = {name: once[prompt] for name, prompt in candidates.items()}
    return max(scores, key=lambda name: scores[name]), scores

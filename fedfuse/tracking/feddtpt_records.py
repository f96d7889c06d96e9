"""Records of a run that tunes prompts: lines of prompts.jsonl and aggregations.jsonl."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedfuse.feddtpt.selection import AggregationResult


@dataclass(frozen=True, slots=True)
class PromptLine:
    """A line of prompts.jsonl: a prompt of the server or a client after a round, scored.

    ``test`` and ``private`` are accuracies in [0, 1], on the test set and on private examples; for
    the global prompt the mean of the clients'. ``queries`` counts, for the server, all that was
    paid for the prompt since the run began, and for a client those of that round.
    """

    stage: str
    round: int
    model: str
    tokens: list[str]
    queries: int
    test: float | None = None
    private: float | None = None

    @property
    def text(self) -> str:
        """Text of the tokens, joined by spaces."""
        return " ".join(self.tokens)


@dataclass(frozen=True, slots=True)
class KeptLine:
    """A token of an aggregated prompt; ``clients`` are those whose tokens it represents."""

    token: str
    weight: float
    cluster: int
    clients: list[str]


@dataclass(frozen=True, slots=True)
class PointLine:
    """An uploaded token in the plane; ``cluster`` is -1 for noise."""

    client: str
    token: str
    cluster: int
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class AggregationLine:
    """A line of aggregations.jsonl: the aggregation and selection of a round.

    ``chosen`` names the candidate that became the global prompt; ``scores`` are the candidates'
    accuracies on the validation set. Nothing is kept or uploaded where nothing was aggregated.
    """

    round: int
    chosen: str
    scores: dict[str, float]
    kept: list[KeptLine]
    uploaded: list[PointLine]


def aggregation_line(
    server_round: int, result: AggregationResult, word: Callable[[int], str]
) -> AggregationLine:
    """Record of a round's aggregation and selection.

    Args:
        server_round: number of the round.
        result: the selected prompt and where it comes from.
        word: text of a token id.
    """
    made, kept, uploaded = result.aggregated, [], []
    if made is not None:
        kept = [
            KeptLine(word(token.token), token.weight, token.cluster, list(token.clients))
            for token in made.kept
        ]
        uploaded = [
            PointLine(
                source.client, word(source.token), cluster, round(float(x), 4), round(float(y), 4)
            )
            for source, cluster, (x, y) in zip(
                made.uploaded, made.clusters.tolist(), made.coordinates, strict=True
            )
        ]
    return AggregationLine(server_round, result.name, result.scores, kept, uploaded)

"""Where the tokens of an aggregated prompt come from, as a report's lines have it."""

from __future__ import annotations

from collections.abc import Callable

from fedfuse.feddtpt.clusters import plane
from fedfuse.feddtpt.next_prompt import AggregationResult
from fedfuse.tracking.feddtpt_records import AggregationLine, KeptLine, PointLine


def aggregation_line(
    server_round: int, succession: AggregationResult, word: Callable[[int], str]
) -> AggregationLine:
    """A round's aggregation and choice.

    Args:
        server_round: the round.
        succession: what came of it.
        word: the text of a token.
    """
    made, choice = succession.aggregation, succession.choice
    if made is None:
        return AggregationLine(server_round, choice.name, choice.scores, [], [])
    kept = [
        KeptLine(word(token.token), token.weight, token.cluster, list(token.clients))
        for token in made.kept
    ]
    points = zip(made.uploaded, made.clusters.tolist(), plane(made.embeddings), strict=True)
    uploaded = [
        PointLine(
            source.client, word(source.token), cluster, round(float(x), 4), round(float(y), 4)
        )
        for source, cluster, (x, y) in points
    ]
    return AggregationLine(server_round, choice.name, choice.scores, kept, uploaded)

"""Slow, obvious versions of alignment mode "chain-rule" and of the projection of its rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fedfuse.knowledge.record import Knowledge
from fedfuse.tokenizers.label_rows import LabelRows


def alignment(
    source: LabelRows, target: LabelRows, paired: Sequence[int]
) -> list[tuple[int, int, int]]:
    """Source row, span and seen of every target row, from the rows paired by their prefix."""
    result = []
    for t, pair in enumerate(paired):
        answer = (-1, 1, 0)
        if pair >= 0:
            end, goal = int(source.end[pair]), int(target.end[t])
            if end < 0 or goal <= end:
                answer = (pair, 1, 0)
            else:
                for last in range(pair, len(source.token)):
                    same_sample = source.sample_of_row[last] == source.sample_of_row[pair]
                    if same_sample and source.end[last] == goal:
                        answer = (pair, last - pair + 1, 0)
                        break
        else:
            # Go back to the row where the covering source token begins.
            for before in range(t - 1, -1, -1):
                if target.sample_of_row[before] != target.sample_of_row[t]:
                    break
                if result[before][0] >= 0 and result[before][2] == 0:
                    row, span, _ = result[before]
                    inside = 0 <= target.prefix[t] < source.end[row]
                    if span == 1 and inside and target.end[t] <= source.end[row]:
                        answer = (row, 1, t - before)
                    break
        result.append(answer)
    return result


def spanning(
    knowledge: Knowledge,
    source: LabelRows,
    first: int,
    span: int,
    label: int,
    source_bytes: Sequence[bytes],
    heads: Sequence[int],
    target_ids: Mapping[bytes, int],
    lead: int,
) -> dict[int, float]:
    """Probability by target id of a token that is ``span`` source tokens long."""
    result: dict[int, float] = {}
    read, said = 1.0, b""
    if lead:
        heads = [target_ids.get(led(text, lead), -1) for text in source_bytes]
    for step in range(span):
        row = first + step
        token = int(source.token[row])
        for i, logprob in zip(knowledge.indices[row], knowledge.logprobs[row], strict=True):
            if int(i) == token or logprob == -math.inf:
                continue
            goal = heads[int(i)] if step == 0 else target_ids.get(said + source_bytes[int(i)])
            if goal is not None and goal >= 0:
                result[goal] = result.get(goal, 0.0) + read * math.exp(logprob)
        read *= math.exp(knowledge.label_logprob[row])
        said += source_bytes[token] if step else led(source_bytes[token], lead)
    result[label] = result.get(label, 0.0) + read
    return result


def led(text: bytes, lead: int) -> bytes:
    """With a space in front, or without the one that it has; nothing if it has none."""
    if lead > 0:
        return b" " + text
    return text if lead == 0 else text[1:] if text.startswith(b" ") else b""


def lead_of(
    source: LabelRows,
    target: LabelRows,
    row: int,
    t: int,
    source_bytes: Sequence[bytes],
    target_bytes: Sequence[bytes],
) -> int:
    """What is to be done to the source's tokens: 1 a space in front, -1 the space taken away."""

    def extra(rows: LabelRows, at: int, texts: Sequence[bytes]) -> bool:
        text = texts[int(rows.token[at])]
        return text.startswith(b" ") and len(text) == rows.end[at] - rows.prefix[at] + 1

    if source.end[row] < 0 or target.end[t] < 0:
        return 0
    return int(extra(target, t, target_bytes)) - int(extra(source, row, source_bytes))


def continuing(
    knowledge: Knowledge, row: int, before: Sequence[int], pieces: Sequence[Sequence[int]]
) -> dict[int, float]:
    """Probability by target id of what follows ``before`` inside a source token."""
    kept = {
        int(i): math.exp(logprob)
        for i, logprob in zip(knowledge.indices[row], knowledge.logprobs[row], strict=True)
        if logprob > -math.inf and list(pieces[int(i)][: len(before)]) == list(before)
    }
    total = sum(kept.values())
    result: dict[int, float] = {}
    for i, mass in kept.items():
        if len(pieces[i]) > len(before):
            goal = pieces[i][len(before)]
            known = 1 - math.exp(knowledge.tail_logprob[row])
            result[goal] = result.get(goal, 0.0) + mass / total * known
    return result

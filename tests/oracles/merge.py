"""Slow, obvious versions of alignment mode "chain-rule" and of the projection of its rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fedfuse.knowledge.record import Knowledge
from fedfuse.tokenizers.label_rows import LabelRows


def alignment(
    source: LabelRows, target: LabelRows, paired: Sequence[int]
) -> list[tuple[int, int, int]]:
    """``Alignment``'s fields of every target row, from the rows paired by their place."""
    result = []
    for t, pair in enumerate(paired):
        answer = (-1, 1, 0)
        if pair >= 0:
            end, goal = int(source.byte_end[pair]), int(target.byte_end[t])
            if end < 0 or goal <= end:
                answer = (pair, 1, 0)
            else:
                for last in range(pair, len(source.token)):
                    same_sample = source.sample_of_row[last] == source.sample_of_row[pair]
                    if same_sample and source.byte_end[last] == goal:
                        answer = (pair, last - pair + 1, 0)
                        break
        else:
            # Go back to the row where the covering source token begins.
            for before in range(t - 1, -1, -1):
                if target.sample_of_row[before] != target.sample_of_row[t]:
                    break
                if result[before][0] >= 0 and result[before][2] == 0:
                    row, num_source_tokens, _ = result[before]
                    inside = 0 <= target.byte_start[t] < source.byte_end[row]
                    if (
                        num_source_tokens == 1
                        and inside
                        and target.byte_end[t] <= source.byte_end[row]
                    ):
                        answer = (row, 1, t - before)
                    break
        result.append(answer)
    return result


def spanning(
    knowledge: Knowledge,
    source: LabelRows,
    first: int,
    num_source_tokens: int,
    label: int,
    source_bytes: Sequence[bytes],
    heads: Sequence[int],
    target_ids: Mapping[bytes, int],
    space_shift: int,
) -> dict[int, float]:
    """Probability by target id of a token that is ``num_source_tokens`` source tokens long."""
    result: dict[int, float] = {}
    read, said = 1.0, b""
    if space_shift:
        heads = [target_ids.get(with_space_shift(text, space_shift), -1) for text in source_bytes]
    for step in range(num_source_tokens):
        row = first + step
        token = int(source.token[row])
        for i, logprob in zip(knowledge.indices[row], knowledge.logprobs[row], strict=True):
            if int(i) == token or logprob == -math.inf:
                continue
            goal = heads[int(i)] if step == 0 else target_ids.get(said + source_bytes[int(i)])
            if goal is not None and goal >= 0:
                result[goal] = result.get(goal, 0.0) + read * math.exp(logprob)
        read *= math.exp(knowledge.label_logprob[row])
        said += source_bytes[token] if step else with_space_shift(source_bytes[token], space_shift)
    result[label] = result.get(label, 0.0) + read
    return result


def with_space_shift(text: bytes, space_shift: int) -> bytes:
    """With a space in front, or without the one that it has; nothing if it has none."""
    if space_shift > 0:
        return b" " + text
    return text if space_shift == 0 else text[1:] if text.startswith(b" ") else b""


def space_shift_of(
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
        return text.startswith(b" ") and len(text) == rows.byte_end[at] - rows.byte_start[at] + 1

    if source.byte_end[row] < 0 or target.byte_end[t] < 0:
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

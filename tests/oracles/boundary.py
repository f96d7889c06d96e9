"""Slow, obvious version of boundary alignment: compare the bytes before every pair of rows."""

from __future__ import annotations

from collections.abc import Sequence

from fedfuse.tokenizers.label_rows import LabelRows


def matches(source: LabelRows, target: LabelRows, texts: Sequence[str]) -> list[int]:
    """For each target row the last source row with the same bytes before its token, or -1."""
    result = [-1] * len(target.token)
    for i, text in enumerate(texts):
        raw = text.encode()
        target_rows = range(int(target.offsets[i]), int(target.offsets[i + 1]))
        source_rows = range(int(source.offsets[i]), int(source.offsets[i + 1]))
        for t in target_rows:
            before = target.byte_start[t]
            later_twin = any(target.byte_start[u] == before for u in target_rows if u > t)
            if before < 0 or later_twin:
                continue
            for s in source_rows:
                if source.byte_start[s] >= 0 and raw[: source.byte_start[s]] == raw[:before]:
                    result[t] = s
    return result

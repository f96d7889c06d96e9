"""What both views of an alignment share: tokens made visible, marks, and rows of numbers."""

from __future__ import annotations

import unicodedata
from typing import NamedTuple

from fedfuse.alignment.side_by_side import Coverage
from fedfuse.alignment.statistics import TableStatistics

SPACE = "\N{MIDDLE DOT}"
# Between the tokens of one block.
JOINT = "\N{BOX DRAWINGS LIGHT QUADRUPLE DASH VERTICAL}"
# Behind a target token whose position no source position speaks of.
ALONE = "\N{DEGREE SIGN}"
NOTHING = "\N{EMPTY SET}"
MARKS = {"exact": "=", "near": "~", "none": "\N{MULTIPLICATION SIGN}"}
MEANINGS = {
    "exact": "one token each, of equal bytes",
    "near": "the table leads from a source token to a target token of the block",
    "none": "the table leads elsewhere",
}
_NAMED = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


class Row(NamedTuple):
    """A line of a table of counts; ``share`` is a percentage, or empty."""

    label: str
    number: int
    share: str


def visible(raw: bytes) -> str:
    """A token's bytes as one printable line, in which nothing joins with its neighbours.

    Spaces are ``SPACE``, bytes that are no whole character are hexadecimal in ``<>``, characters
    without a shape of their own are escaped, and a combining mark stands on a dotted circle.
    """
    parts: list[str] = []
    partial: list[str] = []
    for char in raw.decode("utf-8", errors="surrogateescape"):
        if "\udc80" <= char <= "\udcff":
            partial.append(f"{ord(char) - 0xDC00:02X}")
            continue
        if partial:
            parts.append(f"<{' '.join(partial)}>")
            partial = []
        parts.append(_shape(char, first=not parts))
    if partial:
        parts.append(f"<{' '.join(partial)}>")
    return "".join(parts)


def _shape(char: str, *, first: bool) -> str:
    if char == " ":
        return SPACE
    if char in _NAMED:
        return _NAMED[char]
    category = unicodedata.category(char)
    variation = "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef"
    if category[0] in "CZ" or variation:
        code = ord(char)
        return f"\\x{code:02x}" if code < 256 else f"\\u{{{code:x}}}"
    return "\N{DOTTED CIRCLE}" + char if category[0] == "M" and first else char


def share(part: int, whole: int) -> str:
    """A share as a percentage with one decimal, ``NOTHING`` of nothing."""
    if not whole:
        return NOTHING
    # Few must not read as none, nor most as all.
    tenths = part / whole * 1000
    if 0 < tenths < 1:
        return "<0.1%"
    if 999 < tenths < 1000:
        return ">99.9%"
    return f"{tenths / 10:.1f}%"


def distance_labels(unit: str) -> list[str]:
    """What the entries of ``TableStatistics.by_distance`` are, distance in ``unit``."""
    single = unit.removesuffix("s")
    return [
        "exact match",
        f"1 {single} away",
        f"2 {unit} away",
        f"3 {unit} away",
        f"4 {unit} or more",
    ]


def statistics_rows(statistics: TableStatistics, unit: str) -> list[Row]:
    """Every count of a table, with its share of the tokens or the specials."""
    total = statistics.tokens
    labels = distance_labels(unit)
    rows = [
        Row("source vocabulary", statistics.source_vocab, ""),
        Row("target vocabulary", statistics.target_vocab, ""),
        Row("source tokens for text", total, ""),
    ]
    distances = zip(labels, statistics.by_distance, strict=True)
    rows += [Row(label, n, share(n, total)) for label, n in distances]
    mapped, specials = statistics.specials_mapped, statistics.specials
    return [
        *rows,
        Row("ties: several nearest targets", statistics.ties, share(statistics.ties, total)),
        Row(
            "ambiguous: target shared with others",
            statistics.ambiguous,
            share(statistics.ambiguous, total),
        ),
        Row(f"specials mapped to specials, of {specials}", mapped, share(mapped, specials)),
    ]


def coverage_rows(coverage: Coverage) -> list[Row]:
    """Every count of the texts, with its share of the positions or tokens."""
    ours, theirs = coverage.source_tokens, coverage.target_tokens
    return [
        Row(
            f"target positions with a source, of {theirs:,}",
            coverage.with_source,
            share(coverage.with_source, theirs),
        ),
        Row(f"source positions used, of {ours:,}", coverage.used, share(coverage.used, ours)),
        Row(
            f"source tokens mapped exactly, of {ours:,}",
            coverage.exact,
            share(coverage.exact, ours),
        ),
    ]

"""Parts of both views of an alignment: visible tokens, marks, and rows of numbers."""

from __future__ import annotations

import unicodedata
from itertools import groupby
from typing import NamedTuple

from fedfuse.alignment.side_by_side import Coverage, Token
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
SIGNS = (
    f"{SPACE} a space, {JOINT} between the tokens of a block, {ALONE} behind a target token at a "
    "position that no source position speaks of"
)
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
    text = raw.decode("utf-8", errors="surrogateescape")
    for partial, chars in groupby(text, lambda char: "\udc80" <= char <= "\udcff"):
        if partial:
            parts.append(f"<{' '.join(f'{ord(char) - 0xDC00:02X}' for char in chars)}>")
        else:
            for char in chars:
                parts.append(_shape(char, first=not parts))
    return "".join(parts)


def has_partner(token: Token) -> bool:
    """Whether a token goes unmarked; a source token without partner is nobody's loss."""
    return token.paired or token.nearest is not None


def marked(token: Token) -> str:
    """A token made visible, with ``ALONE`` behind it where it has no partner."""
    return visible(token.raw) + ("" if has_partner(token) else ALONE)


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
    """Names of the entries of ``TableStatistics.by_distance``, in ``unit``."""
    near = (f"1 {unit.removesuffix('s')} away", f"2 {unit} away", f"3 {unit} away")
    return ["exact match", *near, f"4 {unit} or more"]


def distance_rows(statistics: TableStatistics, unit: str) -> list[Row]:
    """Number of tokens at each distance from their nearest target."""
    distances = zip(distance_labels(unit), statistics.by_distance, strict=True)
    return [_part(label, number, statistics.tokens) for label, number in distances]


def statistics_rows(statistics: TableStatistics, unit: str) -> list[Row]:
    """Every count of a table, with its share of the tokens or the specials."""
    total, specials = statistics.tokens, statistics.specials
    return [
        Row("source vocabulary", statistics.source_vocab, ""),
        Row("target vocabulary", statistics.target_vocab, ""),
        Row("source tokens for text", total, ""),
        *distance_rows(statistics, unit),
        _part("ties: several nearest targets", statistics.ties, total),
        _part("ambiguous: target shared with others", statistics.ambiguous, total),
        _part(f"specials mapped to specials, of {specials}", statistics.specials_mapped, specials),
    ]


def coverage_rows(coverage: Coverage) -> list[Row]:
    """Every count of the texts, with its share of the positions or tokens."""
    ours, theirs = coverage.source_tokens, coverage.target_tokens
    return [
        _part(f"target positions with a source, of {theirs:,}", coverage.with_source, theirs),
        _part(f"source positions used, of {ours:,}", coverage.used, ours),
        _part(f"source tokens mapped exactly, of {ours:,}", coverage.exact, ours),
    ]


def _part(label: str, number: int, whole: int) -> Row:
    return Row(label, number, share(number, whole))

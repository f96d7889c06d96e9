"""Alignment of two tokenizers on the terminal: counts, and texts with tokens side by side.

Blocks stand next to each other, their tokens one above the other, the match between them::

    SRC  The  ·token┊ization    !
          =         ~           =
    DST  The  ·tok┊en°┊ization  !
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedfuse.alignment.side_by_side import Block, Coverage, TextAlignment, Token
from fedfuse.alignment.statistics import TableStatistics
from fedfuse.report import alignment_formatting as formatted
from fedfuse.report.alignment_formatting import MARKS, Row
from fedfuse.report.formatting import count, shorten
from fedfuse.tracking.json_fields import clean

WIDTH = 100
# Blocks shown in all: a few screens.
BLOCKS = 160
COLOURS = {"exact": "green", "near": "yellow", "none": "red"}
_LABELS = ("SRC  ", "     ", "DST  ")
_GAP = "  "


def print_statistics(
    console: Console, source: str, target: str, statistics: TableStatistics, unit: str
) -> None:
    """Print counts of the table from ``source`` to ``target``, two names."""
    for label, name in zip(("SRC  ", "DST  "), (source, target), strict=True):
        console.print(Text().append(label, "bold").append(shorten(clean(name), console.width - 6)))
    console.print(_counts("vocabulary", formatted.statistics_rows(statistics, unit)))


def print_alignment(
    console: Console,
    coverage: Coverage,
    texts: Sequence[TextAlignment],
    mode: str,
    limit: int = BLOCKS,
) -> None:
    """Print the coverage of texts, and their first ``limit`` blocks in all, side by side."""
    title = f"{count(len(texts), 'text')}, positions by {mode}"
    console.print(_counts(title, formatted.coverage_rows(coverage)))
    for match, mark in MARKS.items():
        line = Text().append(f"{mark} ", f"bold {COLOURS[match]}")
        console.print(line.append(formatted.MEANINGS[match], "dim"))
    console.print(Text(formatted.SIGNS, "dim"))
    left = sum(alignment.total for alignment in texts)
    for number, alignment in enumerate(texts, start=1):
        blocks = alignment.blocks[:limit]
        if not blocks:
            continue
        limit -= len(blocks)
        left -= len(blocks)
        console.print()
        if len(texts) > 1:
            console.print(Text(f"text {number}", "bold"))
        for line in layout(blocks, console.width):
            # Cut rather than folded: a folded line would break the columns of the two others.
            console.print(line, no_wrap=True, overflow="ignore", crop=False, soft_wrap=True)
    if left:
        console.print()
        console.print(Text(f"\N{HORIZONTAL ELLIPSIS} {count(left, 'more block')} not shown", "dim"))


def layout(blocks: Sequence[Block], width: int) -> Iterator[Text]:
    """Lines of at most ``width`` cells: groups of three, source, match, target, a gap between.

    A block that is wider than a line is cut, with an ellipsis.
    """
    room = max(width - len(_LABELS[0]), 8)
    group: list[tuple[Block, str, str, int]] = []
    taken = 0
    for block in blocks:
        source, target = (_cell(side, room) for side in (block.source, block.target))
        wide = max(cell_len(source), cell_len(target))
        if group and taken + len(_GAP) + wide > room:
            yield from _lines(group)
            yield Text()
            group, taken = [], 0
        taken += wide + (len(_GAP) if group else 0)
        group.append((block, source, target, wide))
    if group:
        yield from _lines(group)


def _lines(group: Sequence[tuple[Block, str, str, int]]) -> Iterator[Text]:
    source, marks, target = (Text().append(label, "dim") for label in _LABELS)
    for block, above, below, wide in group:
        colour = COLOURS[block.match]
        for line, text in (
            (source, above),
            (marks, MARKS[block.match].center(wide)),
            (target, below),
        ):
            line.append(text, f"bold {colour}" if line is marks else colour)
            line.append(" " * (wide - cell_len(text) + len(_GAP)))
    for line in (source, marks, target):
        line.rstrip()
        yield line


def _cell(tokens: Sequence[Token], room: int) -> str:
    """The tokens of one side of a block, in at most ``room`` cells."""
    text = formatted.JOINT.join(map(formatted.marked, tokens)) or formatted.NOTHING
    if cell_len(text) > room:
        text = set_cell_size(text, room - 1).rstrip() + "\N{HORIZONTAL ELLIPSIS}"
    return text


def _counts(title: str, rows: Sequence[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column(title, overflow="fold")
    for name in ("count", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(Text(row.label), f"{row.number:,}", row.share)
    return table

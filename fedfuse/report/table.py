"""The results of a run as a table for the terminal, at most 100 columns wide."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedfuse.report.feddtpt import prompt_rows
from fedfuse.report.formatting import shorten
from fedfuse.report.tables import Cell, cell, gain_note, gain_title, late_models, result_rows
from fedfuse.tracking.run import RunFolder

WIDTH = 100
NAME_WIDTH = 22
COLOURS = {"better": "green", "worse": "red", "": ""}


def print_table(run: RunFolder, console: Console | None = None) -> Table:
    """Print models by stages: all-domain mean loss (nats/byte) and accuracy; return the table.

    Without a console one is made; where the output is no terminal it is 100 columns wide.
    """
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=WIDTH)
    if run.prompts:
        table = prompt_table(run)
        console.print(Text(f"{shorten(run.title, 60)}: accuracy", "bold"))
        console.print(table)
        return table
    measured = any(metric.accuracy is not None for metric in run.metrics)
    table = build_table(run, with_accuracy=measured)
    room = console.options.update(max_width=2 * WIDTH)
    if measured and console.measure(table, options=room).maximum > console.width:
        # Losses in full tell more than losses and accuracies cut off.
        measured, table = False, build_table(run, with_accuracy=False)
    what = "loss in nats/byte, accuracy" if measured else "loss in nats/byte"
    console.print(Text(f"{shorten(run.title, 60)}: {what}", "bold"))
    console.print(table)
    for line in _footnotes(run):
        console.print(Text(line, "dim"))
    return table


def build_table(run: RunFolder, *, with_accuracy: bool) -> Table:
    """The table that ``print_table`` prints; names are plain text, never markup."""
    rows, gains = result_rows(run), gain_title(run)
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    # Where space is short names wrap and numbers do not.
    table.add_column("model", overflow="fold", min_width=8, max_width=NAME_WIDTH)
    for stage in run.stages:
        table.add_column(stage, justify="right", no_wrap=True)
    if gains:
        table.add_column(gains.replace(" ", "\n"), justify="right", no_wrap=True)
    for row in rows:
        texts = [_text(item, with_accuracy) for item in row.cells]
        last = [Text(row.gain, COLOURS[row.trend])] if gains else []
        table.add_row(Text(shorten(row.name, NAME_WIDTH)), *texts, *last)
    if run.floor is not None and rows:
        table.add_section()
        # The floor is the same for every stage; it stands under the one that is judged by it.
        place = run.stages.index("federated") if "federated" in run.stages else 0
        floor = _text(cell(run.floor), with_accuracy)
        table.add_row(Text("entropy floor"), *[""] * place, floor, style="dim")
    return table


def prompt_table(run: RunFolder) -> Table:
    """The global prompt round by round, and the baselines' prompts."""
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("round", max_width=18)
    for name in ("test", "private", "queries"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("prompt", overflow="fold")
    for row in prompt_rows(run):
        table.add_row(row.name, row.test, row.private, row.queries, Text(row.text))
    return table


def _text(item: Cell, with_accuracy: bool) -> Text:
    accuracy = f"{item.accuracy:>5}" if with_accuracy and item.loss else ""
    return Text(item.loss + accuracy, COLOURS[item.trend])


def _footnotes(run: RunFolder) -> list[str]:
    floor = "; entropy floor: the best any model can do" if run.has_floor else ""
    return [f"means over domains{floor}", *filter(None, [gain_note(run)]), *late_models(run)]

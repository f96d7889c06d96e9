"""The command ``fedfuse report``: the report of a run folder, written again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(folder: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write report and headline picture of a run folder anew and print its table."""
    from fedfuse.report.run import Run

    Run.read(folder).report()
    show_run(folder)


def show_run(folder: Path) -> None:
    """The last lines of a run: its table and where its report is."""
    from fedfuse.report.table import print_table
    from fedfuse.tracking.run import read_run

    print_table(read_run(folder))
    print(f"report: {folder / 'report.html'}", flush=True)

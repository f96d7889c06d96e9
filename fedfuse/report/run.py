"""A finished run for users of Python: its measurements, table and report."""

from __future__ import annotations

from dataclasses import fields
from io import StringIO
from pathlib import Path

from rich.console import Console

from fedfuse.report.html import write_report
from fedfuse.report.plots import save_headline
from fedfuse.report.table import WIDTH, print_table
from fedfuse.tracking.run import RunFolder, read_run


class Run(RunFolder):
    """A run folder in memory, with its table and its report.

    ``metrics`` is a list of records, one a model, domain and round, as ``pandas.DataFrame`` takes.
    """

    @classmethod
    def read(cls, folder: Path | str) -> Run:
        """Read a run folder.

        Raises:
            FedfuseError: for a folder without a run, and for a malformed file of it.
        """
        found = read_run(folder)
        return cls(**{field.name: getattr(found, field.name) for field in fields(found)})

    def table(self) -> str:
        """Models by stages: mean loss over domains (nats/byte), accuracy, excess removed."""
        console = Console(file=StringIO(), width=WIDTH)
        print_table(self, console)
        return str(console.file.getvalue())  # type: ignore[attr-defined]

    def report(self) -> Path:
        """Write ``headline.svg`` and ``report.html`` into the run folder; path of the latter."""
        save_headline(self, self.folder / "headline")
        return write_report(self.folder)

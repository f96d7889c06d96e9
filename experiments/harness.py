"""The harness of all studies: the command line, the cells, the result file, tables.

A study is a function of its options that returns a ``Study``; ``experiment`` makes a command of it.
A finished cell is kept and never run again; one that was interrupted starts again.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from multiprocessing import get_context
from operator import itemgetter
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Protocol, TypeAlias, TypeVar

import torch
import typer
from matplotlib.figure import Figure

from benchmarks.harness import command_line, write_whole
from fedfuse.files import atomic_write
from fedfuse.models.allocator import keep_freed_memory
from fedfuse.report.style import WIDTH, new_figure, styled
from fedfuse.tracking.run_writer import commit, versions

DOCS = Path(__file__).parents[1] / "docs"
# Options that several studies have.
Seeds = Annotated[str, typer.Option(help="Seeds, joined by commas.")]
Material = Annotated[Path, typer.Option(help="Folder with models, tokenizers and datasets.")]
Output = Annotated[Path, typer.Option(help="Folder where finished cells and runs are kept.")]
Parallel = Annotated[int, typer.Option(min=1, help="Cells at a time.")]
Results = Annotated[
    Path | None, typer.Option(help="File to write; the study's own, and its documents, if none.")
]
RUNS = Path("runs")
# Those that all have, whether their function looks at them or not.
COMMON = (
    inspect.Parameter("output", inspect.Parameter.KEYWORD_ONLY, default=RUNS, annotation=Output),
    inspect.Parameter("results", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Results),
)

# A cell by what it is about: variant, seed, and so on.
Key: TypeAlias = tuple[str | int, ...]
Row: TypeAlias = Mapping[str, Any]
Rows: TypeAlias = Sequence[Row]
R = TypeVar("R", bound=Row)


def name_of(key: Key) -> str:
    """Name of a cell's files."""
    return "-".join(map(str, key)).replace(" ", "-")


class Runnable(Protocol):
    """A kind of study: ``Study`` or ``experiments.federations.Federations``."""

    def run(self, output: Path) -> dict[str, Any]:
        """Run what is not finished, and return the study's part of the result file."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a study runs and what it comes to."""

    # By key, what runs a cell and returns the rows that it measured; pickled for several processes.
    cells: Mapping[Key, Callable[[], Rows]]
    folder: str  # of finished cells; those that depend on different options need different ones
    summarize: Callable[[list[Any]], Mapping[str, Any]]  # headline numbers of all rows
    parallel: int = 1  # cells at a time
    # Parts of the key of cells with the same preparation, which are run in one process; 0: none.
    shared: int = 0

    def run(self, output: Path) -> dict[str, Any]:
        """Run what is not finished; returns the study's part of the result file."""
        folder = output.resolve() / f"experiment-{self.folder}"
        folder.mkdir(parents=True, exist_ok=True)
        files = {key: folder / f"{name_of(key)}.json" for key in self.cells}
        todo = [key for key in self.cells if not files[key].exists()]
        groups = [list(g) for _, g in groupby(todo, lambda key: key[: self.shared] or key)]
        work = [[(files[key], self.cells[key]) for key in group] for group in groups]
        if self.parallel == 1:
            for cells in work:
                _run_cells(cells)
        else:
            # Processes, as some cells start others that mind signals, which threads cannot.
            # Each has its share of the cores, or their threads would wait for each other's.
            threads = max(1, (os.cpu_count() or 1) // self.parallel)
            with ProcessPoolExecutor(
                self.parallel,
                get_context("spawn"),
                _prepare,
                (threads,),
                max_tasks_per_child=1,
            ) as pool:
                list(pool.map(_run_cells, work))  # the first failure stops what has not begun
        kept = [json.loads(file.read_text()) for file in files.values()]
        # A run that goes on takes over what earlier ones finished; the code may have changed.
        about = {"cells_by_commit": dict(Counter(one["commit"] for one in kept))}
        return about | self.results([row for one in kept for row in one["rows"]])

    def results(self, rows: list[Any]) -> dict[str, Any]:
        """Summary and rows, as the result file has them."""
        return {"summary": self.summarize(rows), "cells": rows}


def _prepare(threads: int) -> None:
    """Of a process that runs cells: its threads, and freed memory that it uses again."""
    torch.set_num_threads(threads)
    keep_freed_memory()


def _run_cells(cells: Sequence[tuple[Path, Callable[[], Rows]]]) -> None:
    """Run cells one after another, and keep each when it is finished."""
    for file, cell in cells:
        rows = cell()
        with atomic_write(file) as scratch:
            scratch.write_text(json.dumps({"commit": commit(), "rows": rows}) + "\n")
        print(f"finished: {file.stem}", flush=True)


# What puts the committed results into the documents, by result file.
PUBLISHERS: dict[Path, Callable[[Mapping[str, Any]], None]] = {}


def experiment(
    file: str,
    document: str = "",
    tables: Mapping[str, Callable[[Any], str]] | None = None,
    draw: Callable[[Mapping[str, Any]], object] = lambda frame: None,
    shown: str = "summary",
) -> Callable[[Callable[..., Runnable]], Callable[..., None]]:
    """Make a command of a function that returns a study; its parameters are options.

    It is run at once if its module is, so it stands at the end of it.

    Args:
        file: name of the result file, beside the function's own file.
        document: name of a file in docs/.
        tables: by their marks in the document, how they are made.
        draw: draws pictures of a result file.
        shown: part of the result file that tables show.
    """

    def publish(frame: Mapping[str, Any]) -> None:
        for mark, table in (tables or {}).items():
            put_table(DOCS / document, table(frame[shown]), mark)
        draw(frame)

    def decorate(define: Callable[..., Runnable]) -> Callable[..., None]:
        own = inspect.signature(define, eval_str=True).parameters
        common = [option for option in COMMON if option.name not in own]
        signature = inspect.Signature([*own.values(), *common])
        beside = Path(inspect.getfile(define)).with_name(file)
        PUBLISHERS[beside] = publish

        def command(*args: Any, **options: Any) -> None:
            given = signature.bind(*args, **options)
            given.apply_defaults()
            chosen = given.arguments
            started = time.monotonic()
            found = define(**{name: chosen[name] for name in own}).run(chosen["output"])
            whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
            peak = max(resource.getrusage(who).ru_maxrss for who in whose)
            left_out = ("output", "parallel", "results")
            frame = {
                "command": command_line(define, chosen, left_out),
                **({"seeds": numbers(chosen["seeds"])} if "seeds" in chosen else {}),
                "commit": commit(),
                "versions": versions(),
                "seconds": round(time.monotonic() - started, 1),
                "peak_memory_mb": round(peak / 1024),
                **found,
            }
            write_whole(chosen["results"] or beside, frame)
            print(json.dumps(frame["summary"], indent=1))
            if not chosen["results"]:
                publish(frame)

        command.__doc__ = define.__doc__
        command.__signature__ = signature  # type: ignore[attr-defined]
        if define.__module__ == "__main__":
            typer.run(command)
        return command

    return decorate


@contextmanager
def picture(path: Path, height: float) -> Iterator[Figure]:
    """A figure to draw, as wide as a page, then a small file: letters are text, a line a group."""
    with styled(), atomic_write(path) as scratch:
        figure = new_figure(WIDTH, height)
        yield figure
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(scratch, format="svg", metadata=nothing, facecolor="white")
        text = re.sub(r"<!--.*?-->", "", scratch.read_text(), flags=re.DOTALL)
        text = re.sub(r"> <(?!g id)", "><", re.sub(r"\s+", " ", text))
        scratch.write_text(text.replace("> <", ">\n<") + "\n")


def save_pretrained(folder: Path, *parts: Any) -> None:
    """Save a tokenizer and its model as one Hugging Face folder, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        whole = Path(scratch) / folder.name
        for part in parts:
            part.save_pretrained(whole)
        whole.rename(folder)


def numbers(text: str) -> list[int]:
    """Whole numbers joined by commas."""
    return [int(number) for number in text.split(",")]


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """A table; all columns but the first ``text_columns`` are aligned to the right."""
    rules = "|---" * text_columns + "|---:" * (len(columns) - text_columns) + "|"
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, *rows)]
    return "\n".join([lines[0].replace("|  |", "| |"), rules, *lines[1:]])


def formatted(columns: Mapping[str, str], rows: Iterable[Row], text_columns: int = 1) -> str:
    """A table; by its head, each column is a format of a row's fields."""
    cells = [[form.format_map(row) for form in columns.values()] for row in rows]
    return markdown(list(columns), cells, text_columns)


def put_table(path: Path, table: str, name: str = "table") -> None:
    """Put a table between its marks in a document."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = path.read_text().split(begin)
    _, after = rest.split(end)
    path.write_text(f"{before}{begin}\n{table}\n{end}{after}")


def grouped(rows: Iterable[R], *fields: str) -> dict[Any, list[R]]:
    """Rows by the value of a field, or the tuple of values of several, in order of appearance."""
    groups: dict[Any, list[R]] = defaultdict(list)
    for row in rows:
        groups[itemgetter(*fields)(row)].append(row)
    return dict(groups)


def spread(values: Sequence[float]) -> float:
    """Standard deviation; 0 of a single value."""
    return stdev(values) if len(values) > 1 else 0.0


def mean_of(rows: Iterable[Row], field: str, digits: int | None = 4) -> float:
    """Mean of a field; rounded to a whole number for no ``digits``."""
    found: float = mean(row[field] for row in rows)
    return round(found, digits)


def mean_and_std(name: str, values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Mean under a name, standard deviation under the name with ``_std``."""
    return {name: round(mean(values), digits), f"{name}_std": round(spread(values), digits)}

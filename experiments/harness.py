"""The harness of all studies: the command line, the cells, the result file, tables.

A study is a function of its options that returns a ``Study``; ``experiment`` makes a command of it.
A finished cell is kept and never run again; one that was interrupted starts again.
"""

from __future__ import annotations

import inspect
import json
import re
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import wraps
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any, ParamSpec, Protocol, TypeAlias

import typer
from matplotlib.figure import Figure

from benchmarks.harness import command_line, write_whole
from fedfuse.files import atomic_write
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

# A cell by what it is about: variant, seed, and so on.
Key: TypeAlias = tuple[str | int, ...]
Row: TypeAlias = Mapping[str, Any]
Rows: TypeAlias = Sequence[Row]
P = ParamSpec("P")


def name_of(key: Key) -> str:
    """Name of a cell's files."""
    return "-".join(map(str, key)).replace(" ", "-")


class Runnable(Protocol):
    """A kind of study: ``Study`` or ``experiments.federations.Federations``."""

    def run(self, output: Path) -> dict[str, Any]:
        """Run what is not finished, and return the study's part of the result file."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a study runs and what it comes to.

    Attributes:
        cells: by key, a call that runs the cell and returns the rows that it measured. In several
            processes it is pickled.
        folder: name of the folder in which finished cells are kept; cells that depend on different
            options need different folders.
        summarize: headline numbers of all rows.
        parallel: cells at a time.
        shared: parts of the key that cells share when they are run one after another in one
            process, as their preparation is the same; 0 for none.
    """

    cells: Mapping[Key, Callable[[], Rows]]
    folder: str
    summarize: Callable[[list[Any]], Mapping[str, Any]]
    parallel: int = 1
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
            context = get_context("spawn")
            pool = ProcessPoolExecutor(self.parallel, context, max_tasks_per_child=1)
            _map(pool, _run_cells, work)
        kept = [json.loads(file.read_text()) for file in files.values()]
        # A run that goes on takes over what earlier ones finished; the code may have changed.
        about = {"cells_by_commit": dict(Counter(one["commit"] for one in kept))}
        return about | self.results([row for one in kept for row in one["rows"]])

    def results(self, rows: list[Any]) -> dict[str, Any]:
        """Summary and rows, as the result file has them."""
        return {"summary": self.summarize(rows), "cells": rows}


def _run_cells(cells: Sequence[tuple[Path, Callable[[], Rows]]]) -> None:
    """Run cells one after another, and keep each when it is finished."""
    for file, cell in cells:
        rows = cell()
        with atomic_write(file) as scratch:
            scratch.write_text(json.dumps({"commit": commit(), "rows": rows}) + "\n")
        print(f"finished: {file.stem}", flush=True)


def _map(pool: Executor, function: Callable[..., Any], work: Sequence[Any]) -> list[Any]:
    """Do all work; the first failure stops what has not begun."""
    with pool:
        return list(pool.map(function, work))


def in_threads(function: Callable[..., Any], work: Sequence[Any], parallel: int) -> list[Any]:
    """Do work that waits for processes, so many at a time."""
    return _map(ThreadPoolExecutor(parallel), function, work)


# What puts the committed results into the documents, by result file.
PUBLISHERS: dict[Path, Callable[[Mapping[str, Any]], None]] = {}


def experiment(
    file: str,
    document: str = "",
    tables: Mapping[str, Callable[[Any], str]] | None = None,
    draw: Callable[[Mapping[str, Any]], object] = lambda frame: None,
    shown: str = "summary",
) -> Callable[[Callable[P, Runnable]], Callable[P, None]]:
    """Make a command of a function that returns a study; its parameters are the options.

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

    def decorate(define: Callable[P, Runnable]) -> Callable[P, None]:
        signature = inspect.signature(define)
        own = Path(inspect.getfile(define)).with_name(file)
        PUBLISHERS[own] = publish

        @wraps(define)
        def command(*args: P.args, **options: P.kwargs) -> None:
            given = signature.bind(*args, **options)
            given.apply_defaults()
            chosen = given.arguments
            started = time.monotonic()
            found = define(*args, **options).run(chosen.get("output", RUNS))
            usage = [
                resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
            ]
            left_out = ("output", "parallel", "results")
            frame = {
                "command": command_line(define, chosen, left_out),
                **({"seeds": numbers(chosen["seeds"])} if "seeds" in chosen else {}),
                "commit": commit(),
                "versions": versions(),
                "seconds": round(time.monotonic() - started, 1),
                "peak_memory_mb": round(max(one.ru_maxrss for one in usage) / 1024),
                **found,
            }
            write_whole(chosen.get("results") or own, frame)
            print(json.dumps(frame["summary"], indent=1))
            if not chosen.get("results"):
                publish(frame)

        if define.__module__ == "__main__":
            typer.run(command)
        return command

    return decorate


def save_svg(figure: Figure, path: Path) -> None:
    """Write a picture as a small file: letters are text, and each group is on a line."""
    with atomic_write(path) as scratch:
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(scratch, format="svg", metadata=nothing, facecolor="white")
        text = re.sub(r"<!--.*?-->", "", scratch.read_text(), flags=re.DOTALL)
        text = re.sub(r"> <(?!g id)", "><", re.sub(r"\s+", " ", text))
        scratch.write_text(text.replace("> <", ">\n<") + "\n")


def numbers(text: str) -> list[int]:
    """Whole numbers joined by commas."""
    return [int(number) for number in text.split(",")]


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """A table; all columns but the first ``text_columns`` are aligned to the right."""
    rules = "|---" * text_columns + "|---:" * (len(columns) - text_columns) + "|"
    return "\n".join([_line(columns), rules, *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def put_table(path: Path, table: str, name: str = "table") -> None:
    """Put a table between its marks in a document."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = path.read_text().split(begin)
    _, after = rest.split(end)
    path.write_text(f"{before}{begin}\n{table}\n{end}{after}")


def spread(values: Sequence[float]) -> float:
    """Standard deviation; 0 of a single value."""
    return stdev(values) if len(values) > 1 else 0.0


def mean_and_std(name: str, values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Mean under a name, standard deviation under the name with ``_std``."""
    return {name: round(mean(values), digits), f"{name}_std": round(spread(values), digits)}

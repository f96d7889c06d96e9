"""The command ``fedfuse extract``: what a model knows of a run's samples, in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fedfuse.cli.run_config import read_config
from fedfuse.cli.simulate import CONFIG_HELP, SET_HELP
from fedfuse.config.run_config import parse


def extract(
    model: Annotated[str, typer.Option(help="Model: builtin:NAME, folder, hub id, or URL#MODEL.")],
    output: Annotated[Path, typer.Option(help="File to write, or to go on with.")],
    data: Annotated[str, typer.Option(help="Data of the run; by default the config's.")] = "",
    tokenizer: Annotated[
        str, typer.Option(help="Tokenizer of a model behind a URL; by default MODEL's.")
    ] = "",
    config: Annotated[Path | None, typer.Option(help=CONFIG_HELP)] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help=SET_HELP)] = None,
) -> None:
    """Write what a model knows of a run's samples to a file that can teach in its place.

    The run then has server.model=knowledge:FILE or clients.model=knowledge:FILE, and the same data,
    seed and data.max-length. The other server keys say how the model is loaded or asked.
    """
    from fedfuse.factory.extraction import extract_teacher

    given = read_config(config, sets or []) | {"server.model": model}
    given |= {"data.source": data} if data else {}
    given |= {"server.tokenizer": tokenizer} if tokenizer else {}
    columns = (TextColumn("samples"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        bar = progress.add_task("", total=None)
        entries = extract_teacher(
            parse(given),
            output,
            lambda done, total: progress.update(bar, completed=done, total=total),
        )
    print(f"{output}: knowledge of {entries:,} inputs, {output.stat().st_size:,} bytes")

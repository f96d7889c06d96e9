"""The command ``fedfuse config``: the keys of a run config."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text


def config(
    word: Annotated[str, typer.Argument(help="Show only keys and meanings with this word.")] = "",
) -> None:
    """List the keys of a run config with default and meaning."""
    from fedfuse.config.describe import describe
    from fedfuse.config.run_config import RunConfig

    table = Table("key", "default", "meaning", box=SIMPLE_HEAD, pad_edge=False)
    for item in describe(RunConfig()):
        meaning = item.meaning + (f" Expected: {item.expected}." if item.expected else "")
        if word.lower() in f"{item.key} {meaning}".lower():
            table.add_row(Text(item.key), Text(str(item.default)), Text(meaning))
    Console().print(table)

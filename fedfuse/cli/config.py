"""The command ``fedfuse config``: the keys of a run config."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedfuse.config.preset import PRESETS, QUICKSTART
from fedfuse.errors import check

NAMES = ", ".join(PRESETS)


def config(
    word: Annotated[str, typer.Argument(help="Show only keys and meanings with this word.")] = "",
    preset: Annotated[str, typer.Option(help=f"Whose defaults to show: {NAMES}.")] = QUICKSTART,
) -> None:
    """List the keys of a run config with default, range and meaning.

    A default with a * is the preset's.
    """
    from fedfuse.config import preset as presets
    from fedfuse.config.describe import describe
    from fedfuse.config.run_config import parse

    check("--preset", repr(preset), f"one of {NAMES}", preset in PRESETS)
    chosen = presets.preset(preset)
    table = Table("key", f"default ({preset})", "range", "meaning", box=SIMPLE_HEAD, pad_edge=False)
    for item in describe(parse({"preset": preset})):
        if word.lower() in f"{item.key} {item.meaning} {item.expected}".lower():
            default = f"{item.default} *" if item.key in chosen else str(item.default)
            table.add_row(*map(Text, (item.key, default, item.expected, item.meaning)))
    Console().print(table)

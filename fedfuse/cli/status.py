"""The command ``fedfuse status``: progress and participants of a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedfuse.report.formatting import bytes_text, loss_text, seconds_text, shorten
from fedfuse.tracking.run import SERVER, RunFolder, read_run

REFRESH_SECONDS = 1.0
NAME_WIDTH = 26
COLOURS = {"running": "yellow", "finished": "green", "failed": "red"}


def status(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    once: Annotated[bool, typer.Option("--once", help="Show it once, do not wait.")] = False,
) -> None:
    """Show the progress and the participants of a run until it ends."""
    console = Console()
    run = read_run(folder)
    with Live(view(run), console=console, auto_refresh=False) as live:
        while run.status == "running" and not once:
            time.sleep(REFRESH_SECONDS)
            run = read_run(folder)
            live.update(view(run), refresh=True)


def view(run: RunFolder) -> Group:
    """Status and round, a line per model, and the latest events."""
    rounds, last = run.config.get("rounds", "?"), run.messages[-1] if run.messages else None
    head = Text.assemble(
        (shorten(run.title, 40), "bold"),
        ": ",
        (run.status, COLOURS[run.status]),
        f", round {last.round} of {rounds}, {last.phase}" if last else ", nobody has answered yet",
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("who", overflow="fold", max_width=NAME_WIDTH)
    for name in ("loss", "last answer", "took", "traffic", "failed"):
        table.add_column(name, justify="right" if name != "last answer" else "left", no_wrap=True)
    for model in (SERVER, *run.clients):
        table.add_row(*_row(run, model))
    events = [
        f"after round {item.round}: {item.event} {run.name(item.client)} {item.detail}".strip()
        for item in run.events[-3:]
    ]
    if failures := run.failures:
        item = failures[-1]
        events.append(f"round {item.round}: {item.phase} of {run.name(item.client)}: {item.error}")
    return Group(head, table, *(Text(line, "dim") for line in events))


def _row(run: RunFolder, model: str) -> list[Text | str]:
    """Name, last loss, last good reply, traffic and failures of a model."""
    mine = [line for line in run.messages if line.client == model]
    good = [line for line in mine if line.error is None]
    failed = len(mine) - len(good)
    curve = run.curve(model)
    size = sum(line.sent_bytes + line.received_bytes for line in mine)
    return [
        Text(shorten(run.name(model), NAME_WIDTH)),
        loss_text(curve[-1].loss) if curve else "",
        f"round {good[-1].round}, {good[-1].phase}" if good else "",
        seconds_text(good[-1].seconds) if good else "",
        bytes_text(size) if size else "",
        Text(str(failed), "red") if failed else "",
    ]

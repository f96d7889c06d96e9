"""The table and the plot of what clients cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import NullLocator

from experiments import harness
from fedfuse.report.style import PALETTE

Cells = Sequence[dict[str, Any]]
COLUMNS = {
    "clients": "{clients}",
    "run, s": "{seconds:.0f}",
    "round, s": "{last_round:.0f}",
    "client and round, s": "{seconds_per_client_and_round:.2f}",
    "server alone, streamed, MB": "{server_extra_mb_streamed:.0f}",
    "server alone, held, MB": "{server_extra_mb_held:.0f}",
    "server and engine, MB": "{server_mb:,}",
    "a client actor, MB": "{actor_mb:,}",
    "all processes, MB": "{simulation_mb:,}",
}
# Title and unit of each panel, and its lines: what they show, and how they are called.
PANELS = {
    ("Time", "seconds"): {"seconds": "whole run", "last_round": "one round"},
    ("The server's memory for knowledge", "MB beyond what it had"): {
        "server_extra_mb_held": "all held",
        "server_extra_mb_streamed": "streamed",
    },
    ("Memory of the simulation", "MB"): {
        "simulation_mb": "all processes",
        "server_mb": "server and engine",
    },
}


def _with_last_round(cells: Cells) -> Cells:
    return [{**cell, "last_round": cell["seconds_per_round"][-1]} for cell in cells]


def table(cells: Cells) -> str:
    """Markdown: one row per number of clients."""
    return harness.formatted(COLUMNS, _with_last_round(cells), text_columns=0)


def draw(frame: Mapping[str, Any], folder: Path = harness.DOCS) -> None:
    """Seconds, the server's memory, and everybody's memory against the number of clients."""
    cells = _with_last_round(frame["cells"])
    clients = [cell["clients"] for cell in cells]
    with harness.picture(folder / "scale.svg", 3.2) as figure:
        panels = zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True)
        for axes, ((title, unit), lines) in panels:
            for colour, (key, label) in zip(PALETTE, lines.items(), strict=False):
                values = [cell[key] for cell in cells]
                axes.plot(clients, values, marker="o", color=colour, label=label)
            axes.set(title=title, xlabel="clients", ylabel=unit)
            axes.set_xticks(clients)
            axes.xaxis.set_minor_locator(NullLocator())
            axes.margins(y=0.3)  # room for the legend
            axes.set_ylim(bottom=0)
            axes.grid(axis="y")
            axes.legend(loc="upper left")

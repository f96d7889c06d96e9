"""The table and the plot of what clients cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from experiments import harness
from fedfuse.report.style import PALETTE, WIDTH, new_figure, styled

Cells = Sequence[dict[str, Any]]


def table(cells: Cells) -> str:
    """Markdown: one row per number of clients."""
    columns = {
        "clients": lambda cell: str(cell["clients"]),
        "run, s": lambda cell: f"{cell['seconds']:.0f}",
        "round, s": lambda cell: f"{cell['seconds_per_round'][-1]:.0f}",
        "client and round, s": lambda cell: f"{cell['seconds_per_client_and_round']:.2f}",
        "server alone, streamed, MB": lambda cell: f"{cell['server_extra_mb_streamed']:.0f}",
        "server alone, held, MB": lambda cell: f"{cell['server_extra_mb_held']:.0f}",
        "server and engine, MB": lambda cell: f"{cell['server_mb']:,}",
        "a client actor, MB": lambda cell: f"{cell['actor_mb']:,}",
        "all processes, MB": lambda cell: f"{cell['simulation_mb']:,}",
    }
    rows = [[show(cell) for show in columns.values()] for cell in cells]
    return harness.markdown(list(columns), rows, text_columns=0)


def draw(cells: Cells, path: Path) -> None:
    """Seconds, the server's memory, and everybody's memory against the number of clients."""
    clients = [cell["clients"] for cell in cells]

    def lines(axes: Axes, title: str, unit: str, labels: dict[str, str]) -> None:
        for colour, (key, label) in zip(PALETTE, labels.items(), strict=False):
            values = [cell[key][-1] if key == "seconds_per_round" else cell[key] for cell in cells]
            axes.plot(clients, values, marker="o", color=colour, label=label)
        axes.set(title=title, xlabel="clients", ylabel=unit)
        axes.set_xticks(clients)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(y=0.3)  # room for the legend
        axes.set_ylim(bottom=0)
        axes.grid(axis="y")
        axes.legend(loc="upper left")

    with styled():
        figure = new_figure(WIDTH, 3.2)
        time, server, everything = figure.subplots(1, 3)
        lines(time, "Time", "seconds", {"seconds": "whole run", "seconds_per_round": "one round"})
        names = {"server_extra_mb_held": "all held", "server_extra_mb_streamed": "streamed"}
        lines(server, "The server's memory for knowledge", "MB beyond what it had", names)
        names = {"simulation_mb": "all processes", "server_mb": "server and engine"}
        lines(everything, "Memory of the simulation", "MB", names)
        harness.save_svg(figure, path)

"""The selection experiment in pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from experiments import harness
from experiments.selection.summary import noise_of
from experiments.selection.tables import SHOWN
from fedfuse.report.style import INK, MUTED, PALETTE, WIDTH, new_figure, styled

OURS = "trained"
# Candidates that a heat map shows; where there are more, these are the most trusted.
COLUMNS = 8


def draw(frame: Mapping[str, Any], folder: Path) -> list[Path]:
    """One picture per scenario: losses, what got worse, whom the learned gate trusts."""
    folder.mkdir(exist_ok=True)
    paths = []
    for scenario in dict.fromkeys(cell["scenario"] for cell in frame["cells"]):
        cells = [cell for cell in frame["cells"] if cell["scenario"] == scenario]
        choices = [choice for choice in frame["choices"] if choice["scenario"] == scenario]
        tried = {cell["variant"] for cell in cells}
        main = [name for name in SHOWN if name in tried]
        path = folder / f"{scenario}.svg"
        with styled():
            figure = new_figure(WIDTH, 1.4 + 0.2 * len(main))
            losses, changes, trust, gate_loss = figure.subplots(
                1, 4, width_ratios=(1.2, 1.2, 1.3, 0.8)
            )
            _losses(losses, cells, main)
            _changes(changes, cells, main, frame["summary"]["training_noise"])
            mine = [choice for choice in choices if choice["variant"] == OURS]
            if mine:
                _trust(trust, mine)
                _gate_loss(gate_loss, mine)
            figure.suptitle(scenario, x=0.01, ha="left", fontweight="bold")
            harness.save_svg(figure, path)
        paths.append(path)
    return paths


def _losses(axes: Axes, cells: Sequence[Mapping[str, Any]], variants: Sequence[str]) -> None:
    for row, variant in enumerate(variants):
        mine = [cell for cell in cells if cell["variant"] == variant]
        seeds = sorted({cell["seed"] for cell in mine})
        values = [mean(c["after"] for c in mine if c["seed"] == seed) for seed in seeds]
        colour = PALETTE[0] if variant == OURS else MUTED
        axes.plot(values, [row] * len(values), "o", color=colour, markersize=3.5, alpha=0.6)
        axes.plot([mean(values)] * 2, [row - 0.35, row + 0.35], color=INK, linewidth=1.4)
    axes.set_yticks(range(len(variants)), variants)
    axes.set_ylim(len(variants) - 0.5, -0.5)
    axes.grid(axis="x")
    axes.set_title("server's loss, nats/byte")


def _changes(
    axes: Axes, cells: Sequence[Mapping[str, Any]], variants: Sequence[str], sigma: float
) -> None:
    for row, variant in enumerate(variants):
        mine = [cell for cell in cells if cell["variant"] == variant]
        for worse in (False, True):
            rises = [
                cell["after"] - cell["before"]
                for cell in mine
                if (cell["after"] - cell["before"] > noise_of(cell, sigma)) == worse
            ]
            axes.plot(
                rises,
                [row] * len(rises),
                "x" if worse else "o",
                color=PALETTE[5] if worse else MUTED,
                markersize=4 if worse else 2.5,
                alpha=0.8,
            )
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(variants)), [""] * len(variants))
    axes.set_ylim(len(variants) - 0.5, -0.5)
    axes.grid(axis="x")
    axes.set_title("change per domain (x: worse)")


def _trust(axes: Axes, choices: Sequence[Mapping[str, Any]]) -> None:
    last = max(choice["round"] for choice in choices)
    tables = [choice["shares"] for choice in choices if choice["round"] == last]
    domains = list(tables[0])
    table = np.array([[t[domain] for domain in domains] for t in tables]).mean(0)  # [domains, C]
    columns = [0, *(1 + np.argsort(-table[:, 1:].sum(0), kind="stable")[: COLUMNS - 1])]
    columns = sorted(int(c) for c in columns)
    axes.imshow(table[:, columns], cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row in range(len(domains)):
        for place, column in enumerate(columns):
            share = table[row, column]
            if share >= 0.05:
                axes.text(
                    place,
                    row,
                    f"{100 * share:.0f}",
                    ha="center",
                    va="center",
                    color="white" if share > 0.5 else INK,
                    fontsize=7.5,
                )
    names = ["self" if column == 0 else str(column - 1) for column in columns]
    axes.set_xticks(range(len(columns)), names)
    axes.set_yticks(range(len(domains)), domains)
    axes.set_xlabel("candidate")
    axes.set_title(f"{OURS}: whom, round {last} (%)")


def _gate_loss(axes: Axes, choices: Sequence[Mapping[str, Any]]) -> None:
    for number, seed in enumerate(sorted({choice["seed"] for choice in choices})):
        mine = sorted((c for c in choices if c["seed"] == seed), key=lambda c: c["round"])
        places = [c["round"] - 1 + part for c in mine for part in (0.05, 0.95)]
        values = [value for c in mine for value in c["gate_loss"]]
        axes.plot(places, values, color=PALETTE[number % len(PALETTE)], marker="o", markersize=2.5)
    axes.set_xlabel("rounds")
    axes.set_title("its loss, nats/row")
    axes.grid(axis="y")

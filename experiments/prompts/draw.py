"""Accuracy against queries, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes

from experiments import harness
from fedfuse.report.style import MUTED, PALETTE, WIDTH, new_figure, styled

VARIANTS = ("feddtpt", "best-client", "one-client")


def draw(cells: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A panel for each skew: the final accuracy at every budget, mean over seeds; dots are runs."""
    skews = list(dict.fromkeys(cell["skew"] for cell in cells))
    with styled():
        figure = new_figure(WIDTH, 3.4)
        panels = figure.subplots(1, len(skews), sharey=True, squeeze=False)[0]
        for axes, skew in zip(panels, skews, strict=True):
            _panel(axes, [cell for cell in cells if cell["skew"] == skew])
            axes.set_title(skew)
            axes.set_xlabel("queries paid for")
        panels[0].set_ylabel("accuracy, test set")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=5)
        harness.save_svg(figure, path)


def _panel(axes: Axes, cells: Sequence[Mapping[str, Any]]) -> None:
    for number, variant in enumerate(VARIANTS):
        mine = [cell for cell in cells if cell["variant"] == variant]
        _line(
            axes,
            PALETTE[number],
            variant,
            [(c["budget"], c["queries"], c["accuracy"]) for c in mine],
        )
    for number, stage in enumerate(("standalone", "centralized"), start=len(VARIANTS)):
        found = [(c["budget"], c["queries"], mean(c[stage])) for c in cells if c[stage]]
        _line(axes, PALETTE[number], stage, found)
    axes.axhline(mean(cell["manual"] for cell in cells), color=MUTED, linestyle=(0, (1, 2)))
    axes.set_xscale("log")
    axes.set_ylim(-0.03, 1.03)
    axes.grid(axis="y")


def _line(axes: Axes, colour: str, label: str, found: Sequence[tuple[int, int, float]]) -> None:
    """Points are (budget, queries, accuracy)."""
    budgets = sorted({budget for budget, _, _ in found})
    xs = [mean(queries for b, queries, _ in found if b == budget) for budget in budgets]
    ys = [mean(accuracy for b, _, accuracy in found if b == budget) for budget in budgets]
    axes.plot(xs, ys, color=colour, marker="o", markersize=4, label=label)
    axes.plot([q for _, q, _ in found], [a for _, _, a in found], ".", color=colour, alpha=0.35)

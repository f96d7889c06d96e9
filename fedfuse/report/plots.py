"""Plots of a run's results: headline, loss per round, and clients by domains.

Each function takes a run and returns an SVG, "" where the run has nothing to show. Where the
entropy floor is known the plots show the loss above it, so that 0 is the best any model can do;
where it is not they show the plain loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from fedfuse.files import atomic_write
from fedfuse.report.feddtpt import accuracy_figure
from fedfuse.report.formatting import change_text, loss_text, percent, shorten
from fedfuse.report.style import (
    INK,
    MUTED,
    STAGE_COLOURS,
    STAGE_LINES,
    STAGE_MARKERS,
    WIDTH,
    new_figure,
    plot,
    styled,
    whole_rounds,
)
from fedfuse.tracking.run import SERVER, Measure, RunFolder

PANELS_PER_ROW = (5, 4, 3)


def loss_label(run: RunFolder) -> str:
    """The label of an axis of losses."""
    if run.has_floor:
        return "loss above the entropy floor (nats/byte)"
    return "loss (nats/byte)"


def _plotted(run: RunFolder) -> list[str]:
    return [model for model in run.measured if model == SERVER or model in run.plotted]


# --- Headline -----------------------------------------------------------------------------------


def headline(run: RunFolder) -> Figure:
    """Models before and after federation, of a prompt its accuracy; empty without metrics.

    A figure on a white ground, for ``savefig`` to PNG or SVG.
    """
    with styled():
        figure = headline_figure(run) or accuracy_figure(run) or new_figure(WIDTH, 1.0)
        figure.patch.set_facecolor("white")
        return figure


def save_headline(run: RunFolder, stem: Path) -> tuple[Path, Path]:
    """Write the headline, atomically, as ``stem``.svg and ``stem``.png; return the two paths."""
    figure = headline(run)
    paths = stem.with_name(stem.name + ".svg"), stem.with_name(stem.name + ".png")
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        # A picture that stands alone may meet a machine without the font: letters become paths.
        with styled(fonttype="path"), atomic_write(path) as scratch:
            figure.savefig(scratch, format=path.suffix[1:], dpi=192, metadata=metadata)
    return paths


def headline_figure(run: RunFolder) -> Figure | None:
    """Every model a row, its stages as dots on an axis of losses; None without metrics."""
    models = _plotted(run)
    if not models:
        return None
    # A gap sets the server apart from the clients.
    rows = np.arange(len(models)) + np.array([0.0 if m == SERVER else 0.35 for m in models])
    figure = new_figure(WIDTH, 1.35 + 0.42 * float(rows[-1] + 1))
    axes = figure.subplots()
    for row, model in zip(rows, models, strict=True):
        _headline_row(run, axes, row, model)
    axes.set_yticks(rows, [shorten(run.name(model), 28) for model in models])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(rows[-1] + 0.6, rows[0] - 0.6)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_xlabel(loss_label(run) + (", 0 = the best any model can do" if run.has_floor else ""))
    if run.has_floor:
        axes.axvline(0, color=INK, linewidth=1.2)
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        above = axes.get_xaxis_transform()
        axes.text(0, 1.01, "entropy floor", transform=above, ha="center", fontsize=8)
    _stage_legend(figure, run.stages)
    return figure


headline_svg = plot(headline_figure)


def _headline_row(run: RunFolder, axes: Axes, row: float, model: str) -> None:
    pair = run.before_after(model)
    if pair is not None:
        before, after = pair[0].shown, pair[1].shown
        axes.plot(
            [before, after], [row, row], color=STAGE_COLOURS["federated"], linewidth=2.6, alpha=0.45
        )
        axes.text(
            1.02, row, _gain_note(run, model), transform=axes.get_yaxis_transform(), va="center"
        )
    for stage in run.stages:
        measure = run.overall(model, stage)
        if measure is None:
            continue
        filled = stage == "federated"
        axes.plot(
            [measure.shown],
            [row],
            linestyle="none",
            marker=STAGE_MARKERS[stage],
            markersize=9 if filled else 7,
            markerfacecolor=STAGE_COLOURS[stage] if filled else "none",
            markeredgecolor=STAGE_COLOURS[stage],
            markeredgewidth=1.8,
            zorder=4 if filled else 3,
        )


def _gain_note(run: RunFolder, model: str) -> str:
    share, change = run.share_removed(model), run.change(model)
    if share is not None:
        return f"{percent(abs(share))} of excess {'removed' if share >= 0 else 'added'}"
    finite = change is not None and math.isfinite(change)
    return f"{change_text(change)} nats/byte" if finite else change_text(change)


def _stage_legend(
    figure: Figure, stages: Sequence[str], *, lines: bool = False, floor: bool = False
) -> None:
    handles = [
        Line2D(
            [],
            [],
            color=STAGE_COLOURS[stage],
            linestyle=STAGE_LINES.get(stage, "-") if lines else "none",
            marker="none" if lines and stage != "federated" else STAGE_MARKERS[stage],
            markersize=5 if lines else 7,
            markerfacecolor=STAGE_COLOURS[stage] if stage == "federated" else "none",
            markeredgewidth=1.8,
            linewidth=1.8,
            label=stage,
        )
        for stage in stages
    ]
    if floor:
        handles.append(Line2D([], [], color=INK, linewidth=1.2, label="entropy floor"))
    figure.legend(handles=handles, loc="outside upper left", ncols=min(6, len(handles)))


# --- Loss per round -----------------------------------------------------------------------------


@plot
def curves(run: RunFolder) -> Figure | None:
    """A panel per model: its loss after each federated round, baselines as horizontal lines."""
    models = [model for model in _plotted(run) if run.curve(model)]
    if not models:
        return None
    # As few gaps as possible, then as few rows.
    columns = min(PANELS_PER_ROW, key=lambda c: -len(models) % c)
    columns = min(columns, len(models))
    rows = math.ceil(len(models) / columns)
    # One or two panels keep their proportions and do not fill the whole width.
    figure = new_figure(WIDTH if columns > 2 else 2.6 + 2.2 * columns, 0.85 + 1.9 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for axes, model in zip(panels, models, strict=False):
        _curve(run, axes, model)
    for axes in panels[len(models) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(models) - columns) : len(models)]:
        axes.tick_params(labelbottom=True)
    untouched = " (0 = the untouched model)" if "zero-shot" in run.stages else ""
    figure.supxlabel(f"round{untouched}", fontsize=9)
    figure.supylabel(loss_label(run).replace(" (", "\n("), fontsize=9)
    shown = [stage for stage in run.stages if stage != "zero-shot"]
    _stage_legend(figure, shown, lines=True, floor=run.has_floor)
    return figure


def _curve(run: RunFolder, axes: Axes, model: str) -> None:
    points = run.curve(model)
    axes.plot(
        [point.round for point in points],
        [point.shown for point in points],
        color=STAGE_COLOURS["federated"],
        marker="o",
        markersize=4,
        linewidth=1.8,
        zorder=3,
    )
    for stage, dashes in STAGE_LINES.items():
        measure = run.overall(model, stage)
        if measure is not None:
            axes.axhline(measure.shown, color=STAGE_COLOURS[stage], linestyle=dashes, linewidth=1.6)
    if run.has_floor:
        axes.axhline(0, color=INK, linewidth=1.2)
    axes.grid(axis="y")
    whole_rounds(axes)
    axes.set_title(shorten(run.name(model), 22))


# --- Clients by domains -------------------------------------------------------------------------


@plot
def heat_map(run: RunFolder) -> Figure | None:
    """Clients by domains before and after federation, one scale of colours, own domains framed."""
    # Without the baseline the untouched models are what there is to compare with.
    before = "standalone" if "standalone" in run.stages else "zero-shot"
    tables = {
        stage: rows
        for stage in (before, "federated")
        if any(rows := [run.by_domain(client, stage) for client in run.plotted])
    }
    if not tables:
        return None
    values = [m.shown for rows in tables.values() for row in rows for m in row.values()]
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low = min(0.0, *finite) if run.has_floor else min(finite)
    scale = Normalize(low, max(*finite, low + 1e-9))
    # Side by side while the numbers fit into their cells, else one above the other.
    across = len(tables) if len(tables) * len(run.domains) <= 14 else 1
    down = len(tables) // across
    width = min(WIDTH, 2.6 + across * (0.3 + 0.78 * len(run.domains)))
    figure = new_figure(width, 0.5 + down * (0.6 + 0.36 * max(2, len(run.plotted))))
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    colours = _heat_colours()
    for axes, (stage, rows) in zip(grid.flat, tables.items(), strict=True):
        _heat_panel(run, axes, rows, scale, colours)
        when = {"standalone": "alone", "zero-shot": "untouched", "federated": "federated"}[stage]
        axes.set_title(when)
    bar = figure.colorbar(ScalarMappable(scale, colours), ax=list(grid.flat), pad=0.02)
    bar.set_label("nats/byte")
    bar.outline.set_visible(False)
    if bar.solids is not None:
        # Without edges the page would shine through between the steps.
        bar.solids.set_edgecolor("face")
    return figure


def _heat_colours() -> Colormap:
    """From near white, good, to a strong blue; in steps few enough that the bar stays vectors."""
    shades = ["#f4f7fb", "#9cc3e6", "#2f7fc1", "#0b3c6f"]
    return LinearSegmentedColormap.from_list("heat", shades, N=40)


def _heat_panel(
    run: RunFolder, axes: Axes, rows: list[dict[str, Measure]], scale: Normalize, colours: Colormap
) -> None:
    for y, (client, row) in enumerate(zip(run.plotted, rows, strict=True)):
        for x, domain in enumerate(run.domains):
            if domain not in row:
                axes.text(x, y, "none", ha="center", va="center", color=MUTED, fontsize=8)
                continue
            value = row[domain].shown
            finite = math.isfinite(value)
            face = colours(scale(value)) if finite else (0.85, 0.85, 0.85, 1.0)
            axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, facecolor=face))
            luminance = 0.299 * face[0] + 0.587 * face[1] + 0.114 * face[2]
            ink = "#101418" if luminance > 0.5 else "#ffffff"
            label = loss_text(value) if finite else "nan"
            axes.text(x, y, label, ha="center", va="center", color=ink, fontsize=8)
            if run.own_domain.get(client) == domain:
                frame = Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, fill=False)
                frame.set(edgecolor=STAGE_COLOURS["standalone"], linewidth=2.2)
                axes.add_patch(frame)
    axes.set_xlim(-0.5, len(run.domains) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    crowded = len(run.domains) > 6 or max(map(len, run.domains), default=0) > 10
    axes.set_xticks(
        range(len(run.domains)),
        [shorten(domain, 16) for domain in run.domains],
        rotation=40 if crowded else 0,
        ha="right" if crowded else "center",
    )
    axes.set_yticks(range(len(rows)), [shorten(run.name(client), 28) for client in run.plotted])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)

"""The study's table and plot, from its summary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from experiments import harness
from experiments.alignment.measures import CHOICES, PAPER
from fedfuse.report.style import INK

Summary = Mapping[str, Mapping[str, Mapping[str, list[float]]]]

COLUMNS = {
    "usable": "rows with a teacher",
    "kept": "mass carried over",
    "loss_usable": "loss, own rows",
    "loss_common": "loss, common rows",
    "loss_all": "loss, all rows",
}
COLOURS = {"dtw": "#d98c00", "exact-boundary": "#c4699b", "chain-rule": "#0f7fc4"}


def table(summary: Summary) -> str:
    """Markdown: one table per group, best loss on all rows in bold."""
    parts = []
    heads = ("alignment / duplicate tokens / mapping", *COLUMNS.values())
    for group, by_choice in summary.items():
        best = min(by_choice, key=lambda choice: by_choice[choice]["loss_all"][0])
        rows = []
        for choice, measures in by_choice.items():
            cells = [f"{measures[key][0]:.1%}" for key in ("usable", "kept")]
            cells += ["{:.3f} ± {:.3f}".format(*measures[key]) for key in [*COLUMNS][2:]]
            name = f"{choice} (FedMKT)" if choice == str(PAPER) else choice
            if choice == best:
                name, cells[-1] = f"**{name}**", f"**{cells[-1]}**"
            rows.append((name, *cells))
        parts.append(f"**{group}**\n\n{harness.markdown(heads, rows)}")
    return "\n\n".join(parts)


def draw(frame: Mapping[str, Summary], folder: Path = harness.DOCS) -> None:
    """Loss on all rows by group and choice."""
    summary = frame["summary"]
    names = [str(choice) for choice in CHOICES]
    with harness.picture(folder / "alignment.svg", 2.6 * len(summary)) as figure:
        panels = figure.subplots(len(summary), 1, squeeze=False)[:, 0]
        for axes, (group, by_choice) in zip(panels, summary.items(), strict=True):
            for place, choice in enumerate(CHOICES):
                value, spread = by_choice[str(choice)]["loss_all"]
                colour = COLOURS[choice.alignment]
                alpha = 1.0 if choice.duplicate_tokens == "sum" else 0.6
                axes.barh(place, value, xerr=spread, color=colour, alpha=alpha, ecolor=INK)
                axes.text(value + spread, place, f" {value:.2f}", va="center", fontsize=8)
            axes.set_yticks(range(len(CHOICES)), names, fontsize=8)
            axes.invert_yaxis()
            axes.set_title(group)
            axes.margins(x=0.08)
        axes.set_xlabel("cross-entropy of the projected teacher, nats per byte, all label rows")

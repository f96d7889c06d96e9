"""The tables of docs/selection.md, and the pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from experiments import harness
from experiments.selection.scenarios import SCENARIOS
from experiments.selection.summary import ALL, loss_by_seed, noise_of
from experiments.selection.variants import DEFAULT_RULE, MAIN, MORE
from fedfuse.report.style import INK, MUTED, PALETTE

# The gate that learns, and one that harms so much that nothing else would show at its scale.
GATE, OFF_SCALE = "trained", "untrained"
# The oracle a second time tells the noise; it is no variant.
SHOWN = [name for name in (*MORE, *MAIN) if not name.endswith("-again")]
# Candidates that a heat map shows; where there are more, these are the most trusted.
COLUMNS = 8
Rows = Sequence[Mapping[str, Any]]
Summary = Mapping[str, Mapping[str, Any]]


def losses(summary: Summary) -> str:
    """Markdown: the server's loss by scenario and rule, mean and spread over seeds."""
    found, std = summary["server_loss"], summary["server_loss_std"]

    def cell(scenario: str, name: str) -> str:
        return f"{found[scenario][name]:.3f} ± {std[scenario][name]:.3f}"

    return _by_scenario(SHOWN, found, cell)


def way(summary: Summary) -> str:
    """Markdown: how much of the way from MinCE to the oracle each rule goes."""
    found, std = (summary[f"share_of_gap_mince_to_oracle{suffix}"] for suffix in ("", "_std"))

    def cell(scenario: str, name: str) -> str:
        share = found[scenario][name]
        return "" if share is None else f"{share:.0%} ± {std[scenario][name]:.0%}"

    return _by_scenario([n for n in SHOWN if n not in ("min-ce", "oracle")], found, cell)


def interference(summary: Summary) -> str:
    """Markdown: how often fusion made a domain worse, and how much."""
    rate, ends = summary["interference_rate"], summary["interference_rate_interval"]
    depth = summary["interference_depth"]
    harmed = {s: of for s, of in rate.items() if s == ALL or any(of.get(n) for n in SHOWN)}

    def cell(scenario: str, name: str) -> str:
        low, high = ends[scenario][name]
        share = f"{rate[scenario][name]:.0%} ({low:.0%} to {high:.0%})"
        return f"{share}, {depth[scenario][name]:.3f}"

    return _by_scenario(SHOWN, harmed, cell)


def default_rule(summary: Summary) -> str:
    """Markdown: what the default rule lacks to the best, and to the best with blind evidence."""

    def cells(found: Mapping[str, Any]) -> tuple[str, str]:
        behind = f"{found['behind']:.4f} ± {found['behind_std']:.4f}"
        return found["best"], behind if found["within_noise"] else f"**{behind}**"

    heads = "scenario", "best rule", "behind it", "best with blind evidence", "behind it"
    rows = [(s, *cells(of), *cells(of["blind"])) for s, of in summary["default_rule"].items()]
    return harness.markdown(heads, rows, text_columns=2)


def ablations(summary: Summary) -> str:
    """Markdown: the learned gate with one thing changed, mean and spread over seeds."""
    rows = []
    for scenario, found in summary["ablations"].items():
        for name, one in found.items():
            more = ("" if one[k] is None else f"{one[k]:.2f}" for k in ("right", "importance_cv2"))
            change = "" if name == GATE else f"{one['change']:+.1%} ± {one['change_std']:.1%}"
            rows.append((scenario, name, f"{one['loss']:.4f}", change, *more))
    heads = "scenario", "variant", "loss", "against trained", "right", "CV²"
    return harness.markdown(heads, rows, text_columns=2)


def _by_scenario(
    names: Sequence[str], found: Mapping[str, Mapping[str, Any]], cell: Callable[[str, str], str]
) -> str:
    """A row for each scenario, a column for each rule that was tried on any."""
    names = [name for name in names if any(name in of for of in found.values())]
    rows = [
        (s, *(cell(s, n) if n in found[s] else "" for n in names))
        for s in (*SCENARIOS, ALL)
        if s in found
    ]
    return harness.markdown(("scenario", *names), rows)


TABLES = {
    "losses": losses,
    "default-rule": default_rule,
    "way": way,
    "interference": interference,
    "ablations": ablations,
}


def draw(frame: Mapping[str, Any], folder: Path = harness.DOCS / "selection") -> list[Path]:
    """One picture per scenario: losses, what got worse, whom the default rule trusts."""
    paths = []
    for scenario, cells in harness.grouped(frame["cells"], "scenario").items():
        tried = harness.grouped(cells, "variant")
        main = {name: tried[name] for name in SHOWN if name in tried}
        chosen = harness.grouped(frame["choices"], "scenario", "variant")
        of_default, of_gate = (chosen.get((scenario, n), []) for n in (DEFAULT_RULE, GATE))
        paths.append(folder / f"{scenario}.svg")
        with harness.picture(paths[-1], 1.4 + 0.2 * len(main)) as figure:
            losses, changes, trust, gate_loss = figure.subplots(
                1, 4, width_ratios=(1.2, 1.2, 1.3, 0.8)
            )
            _losses(losses, main)
            _changes(changes, main, frame["summary"]["training_noise"])
            if of_default:
                _trust(trust, of_default)
            if of_gate:
                _gate_loss(gate_loss, of_gate)
            figure.suptitle(scenario, x=0.01, ha="left", fontweight="bold")
    return paths


def _losses(axes: Axes, variants: Mapping[str, Rows]) -> None:
    for row, (variant, mine) in enumerate(variants.items()):
        values = list(loss_by_seed(mine).values())
        colour = PALETTE[0] if variant == DEFAULT_RULE else MUTED
        axes.plot(values, [row] * len(values), "o", color=colour, markersize=3.5, alpha=0.6)
        axes.plot([mean(values)] * 2, [row - 0.35, row + 0.35], color=INK, linewidth=1.4)
    _cut(axes, variants, [loss for of in _seen(variants) for loss in loss_by_seed(of).values()])
    axes.set_yticks(range(len(variants)), variants)
    axes.set_ylim(len(variants) - 0.5, -0.5)
    axes.grid(axis="x")
    axes.set_title("server's loss, nats/byte")


def _changes(axes: Axes, variants: Mapping[str, Rows], sigma: float) -> None:
    for row, mine in enumerate(variants.values()):
        rises = [(cell["after"] - cell["before"], noise_of(cell, sigma)) for cell in mine]
        looks = (("o", MUTED, 2.5), ("x", PALETTE[5], 4))
        for worse, (marker, colour, size) in enumerate(looks):
            xs = [rise for rise, noise in rises if (rise > noise) == worse]
            ys = [row] * len(xs)
            axes.plot(xs, ys, marker, color=colour, markersize=size, alpha=0.8)
    _cut(axes, variants, [c["after"] - c["before"] for of in _seen(variants) for c in of])
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(variants)), [""] * len(variants))
    axes.set_ylim(len(variants) - 0.5, -0.5)
    axes.grid(axis="x")
    axes.set_title("change per domain (x: worse)")


def _seen(variants: Mapping[str, Rows]) -> list[Rows]:
    """Cells of the variants that the scale is made for."""
    return [mine for name, mine in variants.items() if name != OFF_SCALE]


def _cut(axes: Axes, variants: Mapping[str, Rows], values: Sequence[float]) -> None:
    """A scale that shows some values; an arrow points to a variant that goes beyond."""
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.01
    axes.set_xlim(low - margin, high + 2 * margin)
    if OFF_SCALE in variants:
        row = list(variants).index(OFF_SCALE)
        axes.plot(high + margin, row, ">", color=PALETTE[5], markersize=5)


def _trust(axes: Axes, choices: Rows) -> None:
    last = max(choice["round"] for choice in choices)
    tables = [choice["shares"] for choice in choices if choice["round"] == last]
    domains = list(tables[0])
    table = np.array([[t[domain] for domain in domains] for t in tables]).mean(0)  # [domains, C]
    trusted = 1 + np.argsort(-table[:, 1:].sum(0), kind="stable")[: COLUMNS - 1]
    columns = [0, *sorted(trusted.tolist())]
    axes.imshow(table[:, columns], cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, place), share in np.ndenumerate(table[:, columns]):
        if share >= 0.05:
            look: dict[str, Any] = {"color": "white" if share > 0.5 else INK, "fontsize": 7.5}
            axes.text(place, row, f"{100 * share:.0f}", ha="center", va="center", **look)
    names = ["self" if column == 0 else str(column - 1) for column in columns]
    axes.set_xticks(range(len(columns)), names)
    axes.set_yticks(range(len(domains)), domains)
    axes.set_xlabel("candidate")
    axes.set_title(f"{DEFAULT_RULE}: whom, round {last} (%)")


def _gate_loss(axes: Axes, choices: Rows) -> None:
    for number, seed in enumerate(sorted({choice["seed"] for choice in choices})):
        mine = sorted((c for c in choices if c["seed"] == seed), key=lambda c: c["round"])
        places = [c["round"] - 1 + part for c in mine for part in (0.05, 0.95)]
        values = [value for c in mine for value in c["gate_loss"]]
        axes.plot(places, values, color=PALETTE[number % len(PALETTE)], marker="o", markersize=2.5)
    axes.set_xlabel("rounds")
    axes.set_title("gate's loss")
    axes.grid(axis="y")

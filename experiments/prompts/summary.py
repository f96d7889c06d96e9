"""The runs together, as numbers, table and picture; points are hundredths of test accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes

from experiments import harness
from fedfuse.report.style import MUTED, PALETTE

Cells = Sequence[Mapping[str, Any]]
METHOD = "feddtpt"
DRAWN = (METHOD, "best-client", "one-client")


def summarize(cells: Cells, ablated: int) -> dict[str, Any]:
    """The headline at the largest budget, over seeds and both skews, and everything by setting.

    ``gap_to_centralized_points``: by how much one search with everybody's data is better at as many
    queries. ``gain_over_local_points``: against search alone, mean of the clients.
    ``gain_over_best_client_points``: at each budget, against the best single client's prompt.
    ``ablations``: accuracy by skew and variant at the budget ``ablated``, the best first.
    Those of the headline with ``_std``, between runs.
    """
    largest = max(cell["budget"] for cell in cells)
    whole = [c for c in cells if c["variant"] == METHOD and c["budget"] == largest]
    headline = {
        "gain_over_vague_points": [c["accuracy"] - c["manual"] for c in whole],
        "gain_over_local_points": [c["accuracy"] - mean(c["standalone"]) for c in whole],
        "gap_to_centralized_points": [mean(c["centralized"]) - c["accuracy"] for c in whole],
        "transfer_gain_points": [c["second"]["accuracy"] - c["second"]["manual"] for c in whole],
    }
    settings = by_budget(cells)
    ablations = {}
    for skew, budgets in settings.items():
        rows = {name: row["accuracy"] for name, row in budgets.get(str(ablated), {}).items()}
        ablations[skew] = dict(sorted(rows.items(), key=lambda item: -item[1]))
    return {
        **{name: points(shares) for name, shares in headline.items()},
        **{f"{name}_std": points_std(shares) for name, shares in headline.items()},
        "bytes_per_client_round": harness.mean_of(whole, "bytes_per_client_round", None),
        "aggregated_was_chosen": round(
            mean(name == "aggregated" for c in whole for name in c["chosen"]), 3
        ),
        "gain_over_best_client_points": against_best_client(cells),
        "by_budget": settings,
        "ablations": ablations,
    }


def points(shares: Sequence[float]) -> float:
    """Mean in hundredths."""
    return round(100 * mean(shares), 2)


def points_std(shares: Sequence[float]) -> float:
    """Standard deviation in hundredths; 0 for one run."""
    return round(100 * harness.spread(shares), 2)


def against_best_client(cells: Cells) -> dict[str, dict[str, float]]:
    """``[skew][budget]``: the method's accuracy less the best single client's, in points."""
    found: dict[str, dict[str, float]] = {}
    for (skew, budget), rows in harness.grouped(cells, "skew", "budget").items():
        best = {c["seed"]: c["accuracy"] for c in rows if c["variant"] == "best-client"}
        own = [c for c in rows if c["variant"] == METHOD and c["seed"] in best]
        if gains := [c["accuracy"] - best[c["seed"]] for c in own]:
            found.setdefault(skew, {})[str(budget)] = points(gains)
    return found


def by_budget(cells: Cells) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """``[skew][budget][variant]``: accuracy and queries; search alone and centralized too."""
    found: dict[str, Any] = {}
    for (skew, budget), rows in harness.grouped(cells, "skew", "budget").items():
        here = found.setdefault(skew, {})[str(budget)] = {}
        for variant, mine in harness.grouped(rows, "variant").items():
            here[variant] = {
                **harness.mean_and_std("accuracy", [c["accuracy"] for c in mine]),
                "second": round(mean(c["second"]["accuracy"] for c in mine), 4),
                "queries": harness.mean_of(mine, "queries", None),
            }
        for stage in ("standalone", "centralized"):
            if known := [mean(cell[stage]) for cell in rows if cell[stage]]:
                here[stage] = harness.mean_and_std("accuracy", known)
    return found


def percent(found: Mapping[str, float]) -> str:
    """Accuracy in percent, ± the deviation between seeds."""
    return f"{100 * found['accuracy']:.0f} ± {100 * found['accuracy_std']:.0f}"


def table(summary: Mapping[str, Any]) -> str:
    """Markdown: variants by skew and budget, in percent, ± the deviation between seeds."""
    settings = {
        f"{skew}, {budget}": found
        for skew, budgets in summary["by_budget"].items()
        for budget, found in budgets.items()
    }
    variants = dict.fromkeys(name for found in settings.values() for name in found)
    rows = [
        (name, *(percent(found[name]) if name in found else "" for found in settings.values()))
        for name in variants
    ]
    return harness.markdown(["", *settings], rows)


def draw(frame: Mapping[str, Any], folder: Path = harness.DOCS) -> None:
    """A panel for each skew: the final accuracy at every budget, mean over seeds; dots are runs."""
    skews = harness.grouped(frame["cells"], "skew")
    with harness.picture(folder / "prompts.svg", 3.4) as figure:
        panels = figure.subplots(1, len(skews), sharey=True, squeeze=False)[0]
        for axes, (skew, mine) in zip(panels, skews.items(), strict=True):
            _panel(axes, mine)
            axes.set_title(skew)
            axes.set_xlabel("queries paid for")
        panels[0].set_ylabel("accuracy, test set")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=5)


def _panel(axes: Axes, cells: Cells) -> None:
    lines = {
        variant: [
            (c["budget"], c["queries"], c["accuracy"]) for c in cells if c["variant"] == variant
        ]
        for variant in DRAWN
    }
    for stage in ("standalone", "centralized"):
        lines[stage] = [(c["budget"], c["queries"], mean(c[stage])) for c in cells if c[stage]]
    for colour, (label, found) in zip(PALETTE, lines.items(), strict=False):
        budgets = sorted({budget for budget, _, _ in found})
        xs = [mean(queries for b, queries, _ in found if b == budget) for budget in budgets]
        ys = [mean(accuracy for b, _, accuracy in found if b == budget) for budget in budgets]
        axes.plot(xs, ys, color=colour, marker="o", markersize=4, label=label)
        axes.plot([q for _, q, _ in found], [a for _, _, a in found], ".", color=colour, alpha=0.35)
    axes.axhline(mean(cell["manual"] for cell in cells), color=MUTED, linestyle=(0, (1, 2)))
    axes.set_xscale("log")
    axes.set_ylim(-0.03, 1.03)
    axes.grid(axis="y")

"""What the runs say together: points are hundredths of accuracy on the test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from experiments import harness

Cells = Sequence[Mapping[str, Any]]
METHOD = "feddtpt"


def summarize(cells: Cells, ablated: int) -> dict[str, Any]:
    """The headline at the largest budget, over seeds and both skews, and everything by setting.

    ``gap_to_centralized_points``: by how much one search with everybody's data is better at as many
    queries. ``gain_over_local_points``: against search alone, mean of the clients.
    ``gain_over_best_client_points``: at each budget, against the best single client's prompt.
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
    return {
        **{name: points(shares) for name, shares in headline.items()},
        **{f"{name}_std": points_std(shares) for name, shares in headline.items()},
        "bytes_per_client_round": round(mean(c["bytes_per_client_round"] for c in whole)),
        "aggregated_was_chosen": round(
            mean(name == "aggregated" for c in whole for name in c["chosen"]), 3
        ),
        "gain_over_best_client_points": against_best_client(cells),
        "by_budget": by_setting(cells, "budget"),
        "ablations": ablations(cells, ablated),
    }


def points(shares: Sequence[float]) -> float:
    """Mean in hundredths."""
    return round(100 * mean(shares), 2)


def points_std(shares: Sequence[float]) -> float:
    """Standard deviation in hundredths; 0 for one run."""
    return round(100 * harness.spread(shares), 2)


def against_best_client(cells: Cells) -> dict[str, dict[str, float]]:
    """``[skew][budget]``: the method's accuracy less the best single client's, in points."""
    accuracy = {(c["variant"], c["skew"], c["budget"], c["seed"]): c["accuracy"] for c in cells}
    found: dict[str, dict[str, list[float]]] = {}
    for (variant, skew, budget, seed), value in accuracy.items():
        other = accuracy.get(("best-client", skew, budget, seed))
        if variant == METHOD and other is not None:
            found.setdefault(skew, {}).setdefault(str(budget), []).append(value - other)
    return {skew: {b: points(v) for b, v in budgets.items()} for skew, budgets in found.items()}


def by_setting(cells: Cells, key: str) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """``[skew][value of key][variant]``: accuracy and queries; search alone and centralized too."""
    found: dict[str, Any] = {}
    for skew, value in dict.fromkeys((cell["skew"], cell[key]) for cell in cells):
        rows = [cell for cell in cells if (cell["skew"], cell[key]) == (skew, value)]
        here = found.setdefault(skew, {}).setdefault(str(value), {})
        for variant in dict.fromkeys(cell["variant"] for cell in rows):
            mine = [cell for cell in rows if cell["variant"] == variant]
            here[variant] = {
                "accuracy": round(mean(c["accuracy"] for c in mine), 4),
                "accuracy_std": round(points_std([c["accuracy"] for c in mine]) / 100, 4),
                "second": round(mean(c["second"]["accuracy"] for c in mine), 4),
                "queries": round(mean(c["queries"] for c in mine)),
            }
        for stage in ("standalone", "centralized"):
            known = [mean(cell[stage]) for cell in rows if cell[stage]]
            if known:
                here[stage] = {
                    "accuracy": round(mean(known), 4),
                    "accuracy_std": round(points_std(known) / 100, 4),
                }
    return found


def ablations(cells: Cells, budget: int) -> dict[str, dict[str, float]]:
    """``[skew][variant]``: accuracy at one budget, the best first."""
    found = {}
    for skew, budgets in by_setting(cells, "budget").items():
        variants = budgets.get(str(budget), {})
        rows = {name: row["accuracy"] for name, row in variants.items()}
        found[skew] = dict(sorted(rows.items(), key=lambda item: -item[1]))
    return found


def table(summary: Mapping[str, Any]) -> str:
    """Markdown: variants by skew and budget, in percent, ± the deviation between seeds."""
    rows: dict[str, list[str]] = {}
    settings = [
        (skew, budget) for skew, budgets in summary["by_budget"].items() for budget in budgets
    ]
    for skew, budget in settings:
        for variant in summary["by_budget"][skew][budget]:
            rows.setdefault(variant, [])
    for variant, row in rows.items():
        for skew, budget in settings:
            found = summary["by_budget"][skew][budget].get(variant)
            row.append(
                f"{100 * found['accuracy']:.0f} ± {100 * found['accuracy_std']:.0f}"
                if found
                else ""
            )
    heads = [f"{skew}, {budget}" for skew, budget in settings]
    whole = harness.markdown(["", *heads], [(name, *row) for name, row in rows.items()])
    return whole.replace("|  |", "| |", 1)

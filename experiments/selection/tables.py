"""The tables of docs/selection.md."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from experiments import harness
from experiments.selection.scenarios import SCENARIOS
from experiments.selection.summary import ALL
from experiments.selection.variants import MAIN, MORE

Summary = Mapping[str, Mapping[str, Any]]
# The oracle a second time tells the noise; it is no variant.
SHOWN = [name for name in (*MORE, *MAIN) if not name.endswith("-again")]


def losses(summary: Summary) -> str:
    """Markdown: the server's loss by scenario and rule, mean and spread over seeds."""
    found, std = summary["server_loss"], summary["server_loss_std"]
    names = [name for name in SHOWN if any(name in found[s] for s in found)]
    return _by_scenario(
        names, found, lambda s, n: f"{found[s][n]:.3f} ± {std[s][n]:.3f}" if n in found[s] else ""
    )


def way(summary: Summary) -> str:
    """Markdown: how much of the way from MinCE to the oracle each rule goes."""
    found, std = (summary[f"share_of_gap_mince_to_oracle{suffix}"] for suffix in ("", "_std"))
    names = [
        n for n in SHOWN if n not in ("min-ce", "oracle") and any(n in found[s] for s in found)
    ]

    def cell(scenario: str, name: str) -> str:
        share, deviation = found[scenario].get(name), std[scenario].get(name)
        return "" if share is None or deviation is None else f"{share:.0%} ± {deviation:.0%}"

    return _by_scenario(names, found, cell)


def interference(summary: Summary) -> str:
    """Markdown: how often fusion made a domain worse, and how much."""
    rate, ends = summary["interference_rate"], summary["interference_rate_interval"]
    depth = summary["interference_depth"]
    harmed = [s for s in SCENARIOS if s in rate and any(rate[s].get(n) for n in SHOWN)]
    shown = [scenario for scenario in (*harmed, ALL) if scenario in rate]
    names = [name for name in SHOWN if any(name in rate[s] for s in shown)]

    def cell(scenario: str, name: str) -> str:
        if name not in rate[scenario]:
            return ""
        low, high = ends[scenario][name]
        share = f"{rate[scenario][name]:.0%} ({low:.0%} to {high:.0%})"
        return f"{share}, {depth[scenario][name]:.3f}"

    return _by_scenario(names, shown, cell)


def ablations(summary: Summary) -> str:
    """Markdown: ours with one thing changed, mean and spread over seeds."""
    rows = []
    for scenario, found in summary["ablations"].items():
        for name, one in found.items():
            more = ("" if one[k] is None else f"{one[k]:.2f}" for k in ("right", "importance_cv2"))
            change = "" if name == "trained" else f"{one['change']:+.1%} ± {one['change_std']:.1%}"
            rows.append((scenario, name, f"{one['loss']:.4f}", change, *more))
    heads = "scenario", "variant", "loss", "against ours", "right", "CV²"
    return harness.markdown(heads, rows, text_columns=2)


def _by_scenario(
    names: Sequence[str], scenarios: Container[str], cell: Callable[[str, str], str]
) -> str:
    """A row for each scenario, a column for each rule."""
    rows = [(s, *(cell(s, n) for n in names)) for s in (*SCENARIOS, ALL) if s in scenarios]
    return harness.markdown(("scenario", *names), rows)


TABLES = {"losses": losses, "way": way, "interference": interference, "ablations": ablations}

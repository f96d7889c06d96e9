"""The tables of docs/selection.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.selection.scenarios import SCENARIOS
from experiments.selection.summary import ALL
from experiments.selection.variants import MAIN, MORE

Summary = Mapping[str, Mapping[str, Any]]
# The oracle a second time tells the noise; it is no variant.
SHOWN = [name for name in (*MORE, *MAIN) if not name.endswith("-again")]


def losses(summary: Summary) -> str:
    """Markdown: the server's loss by scenario and selector, mean and spread over seeds."""
    found, spread = summary["server_loss"], summary["server_loss_std"]
    names = [name for name in SHOWN if any(name in found[s] for s in found)]
    lines = ["| scenario | " + " | ".join(names) + " |", "|---" + "|---:" * len(names) + "|"]
    for scenario in filter(found.__contains__, SCENARIOS):
        cells = [
            f"{found[scenario][n]:.3f} ± {spread[scenario][n]:.3f}" if n in found[scenario] else ""
            for n in names
        ]
        lines.append(f"| {scenario} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def way(summary: Summary) -> str:
    """Markdown: how much of the way from MinCE to the oracle each selector goes."""
    found, spread = (summary[f"share_of_gap_mince_to_oracle{suffix}"] for suffix in ("", "_std"))
    names = [
        n for n in SHOWN if n not in ("min-ce", "oracle") and any(n in found[s] for s in found)
    ]
    lines = ["| scenario | " + " | ".join(names) + " |", "|---" + "|---:" * len(names) + "|"]
    for scenario in filter(found.__contains__, SCENARIOS):
        cells = [_share(found[scenario].get(n), spread[scenario].get(n)) for n in names]
        lines.append(f"| {scenario} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def interference(summary: Summary) -> str:
    """Markdown: how often fusion made a domain worse, and how much."""
    rate, ends = summary["interference_rate"], summary["interference_rate_interval"]
    depth = summary["interference_depth"]
    harmed = [s for s in SCENARIOS if s in rate and any(rate[s].get(n) for n in SHOWN)]
    names = [name for name in SHOWN if any(name in rate[s] for s in (*harmed, ALL) if s in rate)]
    lines = ["| scenario | " + " | ".join(names) + " |", "|---" + "|---:" * len(names) + "|"]
    for scenario in (*harmed, ALL):
        if scenario not in rate:
            continue
        cells = []
        for name in names:
            if name not in rate[scenario]:
                cells.append("")
                continue
            low, high = ends[scenario][name]
            cells.append(
                f"{rate[scenario][name]:.0%} ({low:.0%} to {high:.0%}), {depth[scenario][name]:.3f}"
            )
        lines.append(f"| {scenario} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ablations(summary: Summary) -> str:
    """Markdown: ours with one thing changed, mean and spread over seeds."""
    lines = [
        "| scenario | variant | loss | against ours | right | CV² |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for scenario, found in summary["ablations"].items():
        for name, one in found.items():
            right, uneven = (
                "" if one[key] is None else f"{one[key]:.2f}" for key in ("right", "importance_cv2")
            )
            change = "" if name == "trained" else f"{one['change']:+.1%} ± {one['change_std']:.1%}"
            lines.append(
                f"| {scenario} | {name} | {one['loss']:.4f} | {change} | {right} | {uneven} |"
            )
    return "\n".join(lines)


def _share(share: float | None, spread: float | None) -> str:
    return "" if share is None or spread is None else f"{share:.0%} ± {spread:.0%}"


TABLES = {"losses": losses, "way": way, "interference": interference, "ablations": ablations}

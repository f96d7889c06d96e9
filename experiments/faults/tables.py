"""Summary and table of schedules of failures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import harness

PARTS = ("kills", "chaos", "processes")


def summarize(cells: Sequence[Mapping[str, Any]], faults: Iterable[Counter[str]]) -> dict[str, Any]:
    """Schedules, those without a lapse, and how often each fault was to happen."""
    return {
        "schedules": len(cells),
        "without lapses": sum(not cell["lapses"] for cell in cells),
        "faults": dict(sorted(sum(faults, Counter[str]()).items())),
    }


def table(killed: dict[str, Any], failing: dict[str, Any], real: dict[str, Any]) -> str:
    """The summaries as a table, and what the schedules had in them."""
    whole = f"{killed['identical']} bit-identical"
    rows = [("killed at a random point and resumed", f"{killed['points']}", whole)]
    for what, found in {"": failing, " of real processes": real}.items():
        whole = f"{found['without lapses']} without a lapse"
        rows.append((f"schedules of failures{what}", f"{found['schedules']}", whole))
    return (
        f"{harness.markdown(('', 'runs', 'as they should be'), rows, text_columns=3)}\n\n"
        f"The schedules had: {_times(failing)} (of messages; rounds for `away`, servers for "
        f"`killed`).\n\nThose of real processes had: {_times(real)}."
    )


def _times(summary: dict[str, Any]) -> str:
    return ", ".join(f"{name} {times}" for name, times in summary["faults"].items())


def publish(_: Mapping[str, Any]) -> None:
    """Put the summaries of all three result files into docs/faults.md."""
    files = (Path(__file__).with_name(f"{part}.json") for part in PARTS)
    found = [json.loads(file.read_text())["summary"] for file in files]
    harness.put_table(harness.DOCS / "faults.md", table(*found), "faults")

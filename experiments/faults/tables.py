"""What came of both, into docs/faults.md: ``python -m experiments.faults.tables``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.faults import chaos, kills, processes
from experiments.frame import put_table

DOCUMENT = Path(__file__).parents[2] / "docs" / "faults.md"


def table(killed: dict[str, Any], failing: dict[str, Any], real: dict[str, Any]) -> str:
    """The summaries as a table, and what the schedules had in them."""
    return "\n".join(
        [
            "| | runs | as they should be |",
            "|---|---|---|",
            f"| killed at a random point and resumed | {killed['points']} | "
            f"{killed['identical']} bit-identical |",
            f"| schedules of failures | {failing['schedules']} | "
            f"{failing['without lapses']} without a lapse |",
            f"| schedules of failures of real processes | {real['schedules']} | "
            f"{real['without lapses']} without a lapse |",
            "",
            f"The schedules had: {_times(failing)} (of messages; rounds for `away`, servers for "
            "`killed`).",
            "",
            f"Those of real processes had: {_times(real)}.",
        ]
    )


def _times(summary: dict[str, Any]) -> str:
    return ", ".join(f"{name} {times}" for name, times in summary["faults"].items())


def main() -> None:
    """Write the document."""
    parts = (kills, chaos, processes)
    found = [json.loads(part.RESULTS.read_text())["summary"] for part in parts]
    put_table(DOCUMENT, table(*found), "faults")


if __name__ == "__main__":
    main()

"""What came of both, into docs/faults.md: ``python -m experiments.faults.tables``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.faults import chaos, kills
from experiments.frame import put_table

DOCUMENT = Path(__file__).parents[2] / "docs" / "faults.md"


def table(killed: dict[str, Any], failing: dict[str, Any]) -> str:
    """Both summaries as a table, and what the schedules had in them."""
    faults = ", ".join(f"{name} {times}" for name, times in failing["faults"].items())
    return "\n".join(
        [
            "| | runs | as they should be |",
            "|---|---|---|",
            f"| killed at a random point and resumed | {killed['points']} | "
            f"{killed['identical']} bit-identical |",
            f"| schedules of failures | {failing['schedules']} | "
            f"{failing['without lapses']} without a lapse |",
            "",
            f"The schedules had: {faults} (of messages; rounds for `away`, servers for `killed`).",
        ]
    )


def main() -> None:
    """Write the document."""
    found = [json.loads(part.RESULTS.read_text())["summary"] for part in (kills, chaos)]
    put_table(DOCUMENT, table(*found), "faults")


if __name__ == "__main__":
    main()

"""Whether a rework changed any number: the quickstart before and after, compared to the last bit.

``python -m experiments.quickstart.unchanged --before COMMIT`` checks an earlier commit out into a
temporary folder, runs the quickstart (seed 0, in one process) there and here with the same
packages, and compares every line that the two runs measured: losses and accuracies by stage, round,
model and domain, who taught whom, and what gates learned. Message sizes are compared too, phase by
phase: they may differ where a field got another name, and are listed when they do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fedfuse.files import atomic_write
from fedfuse.tracking.run_writer import commit, versions

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("unchanged.json")
# Files of findings, under the name that they have now and those that they had before.
FINDINGS = {
    "metrics": ("metrics.jsonl",),
    "teacher shares": ("teacher_shares.jsonl", "selection.jsonl"),
    "gates": ("gates.jsonl", "selectors.jsonl"),
}
MESSAGES = ("messages.jsonl", "ledger.jsonl")


def run_quickstart(checkout: Path, output: Path) -> Path:
    """Run the quickstart of a checkout; its run folder."""
    command = [sys.executable, "-m", "fedfuse.cli", "simulate", "--in-process"]
    environment = os.environ | {"PYTHONPATH": str(checkout), "PYTHONSAFEPATH": ""}
    options = ["--set", f"output={output}", "--set", "seed=0", "--set", "name=quickstart"]
    subprocess.run([*command, *options], cwd=checkout, env=environment, check=True)
    return output / "quickstart"


def read_first(folder: Path, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The lines of the first of some files that is there."""
    path = next((folder / name for name in names if (folder / name).exists()), None)
    if path is None:
        raise SystemExit(f"{folder}: expected one of {', '.join(names)}, found none")
    return [json.loads(line) for line in path.read_text().splitlines()]


def compare(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[str, Any]:
    """Number of lines, and those that are not the same to the last bit, both ways."""
    pairs = list(zip(before, after, strict=False))
    different = [{"before": one, "after": other} for one, other in pairs if one != other]
    return {"before": len(before), "after": len(after), "different": different}


def sizes(folder: Path) -> dict[str, list[int]]:
    """Bytes to the clients and back, by phase."""
    found: dict[str, list[int]] = {}
    for line in read_first(folder, MESSAGES):
        total = found.setdefault(line["phase"], [0, 0])
        total[0] += line["sent_bytes"]
        total[1] += line["received_bytes"]
    return found


def main() -> int:
    """Compare, write ``unchanged.json``; 1 where a number changed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--before", required=True, help="commit to compare with")
    parser.add_argument("--json", type=Path, default=RESULTS, help="file for the result")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedfuse-unchanged-") as scratch:
        earlier, folder = Path(scratch) / "fedfuse", Path(scratch) / "runs"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(earlier)], check=True)
        checkout = ["git", "-C", str(earlier), "checkout", "--quiet", given.before]
        subprocess.run(checkout, check=True)
        before = run_quickstart(earlier, folder / "before")
        after = run_quickstart(ROOT, folder / "after")
        compared = {
            what: compare(read_first(before, names), read_first(after, names))
            for what, names in FINDINGS.items()
        }
        bytes_before, bytes_after = sizes(before), sizes(after)
    same = all(c["before"] == c["after"] and not c["different"] for c in compared.values())
    result = {
        "before": given.before,
        "commit": commit(),
        "seed": 0,
        "versions": versions(),
        "same": same,
        "compared": compared,
        "bytes": {
            phase: {"before": bytes_before.get(phase), "after": bytes_after.get(phase)}
            for phase in sorted({*bytes_before, *bytes_after})
        },
    }
    with atomic_write(given.json) as file:
        file.write_text(json.dumps(result, indent=1) + "\n")
    for what, found in compared.items():
        print(f"{what}: {found['after']} lines, {len(found['different'])} different")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())

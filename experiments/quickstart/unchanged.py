"""Whether a rework changed any number: the quickstart before and after, compared to the last bit.

``python -m experiments.quickstart.unchanged --before COMMIT`` checks an earlier commit out into a
temporary folder, runs the quickstart (seed 0, in one process) there and here with the same
packages, and compares every line that the two runs measured: losses and accuracies by stage, round,
model and domain, who taught whom, and what gates learned. Message sizes are compared too, phase by
phase: they may differ where a field got another name, and are listed when they do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.harness import ROOT, File, write_whole
from fedfuse.tracking.run_writer import commit, versions

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
    sent, received = Counter[str](), Counter[str]()
    for line in read_first(folder, MESSAGES):
        sent[line["phase"]] += line["sent_bytes"]
        received[line["phase"]] += line["received_bytes"]
    return {phase: [sent[phase], received[phase]] for phase in sent}


def main(
    before: Annotated[str, typer.Option(help="Commit to compare with.")], file: File = RESULTS
) -> None:
    """Compare, write ``unchanged.json``; ends with 1 where a number changed."""
    with tempfile.TemporaryDirectory(prefix="fedfuse-unchanged-") as scratch:
        earlier, folder = Path(scratch) / "fedfuse", Path(scratch) / "runs"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(earlier)], check=True)
        checkout = ["git", "-C", str(earlier), "checkout", "--quiet", before]
        subprocess.run(checkout, check=True)
        runs = run_quickstart(earlier, folder / "before"), run_quickstart(ROOT, folder / "after")
        compared = {
            what: compare(*(read_first(run, names) for run in runs))
            for what, names in FINDINGS.items()
        }
        old, new = (sizes(run) for run in runs)
    same = all(c["before"] == c["after"] and not c["different"] for c in compared.values())
    result = {
        "before": before,
        "commit": commit(),
        "seed": 0,
        "versions": versions(),
        "same": same,
        "compared": compared,
        "bytes": {
            phase: {"before": old.get(phase), "after": new.get(phase)}
            for phase in sorted(old.keys() | new.keys())
        },
    }
    write_whole(file, result)
    for what, found in compared.items():
        print(f"{what}: {found['after']} lines, {len(found['different'])} different")
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    typer.run(main)

"""Speed of token alignment: ``python -m benchmarks.alignment --material FOLDER --json FILE``.

Vocabulary tables between public tokenizers against a loop over the vocabulary, and rows on real
text against per-token loops. Variants that form a ratio take turns, and medians are compared, so
that what else the machine does hits both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from benchmarks.harness import File, Material, Measured, Quick, Repeats, Seed, Timings, benchmark
from benchmarks.projection_speed import (
    AlignmentBench,
    measure_lengths,
    measure_modes,
    measure_reference,
)
from benchmarks.vocabulary_tables import measure_tables

PARTS = ("mined", "qwen", "rows", "reference", "lengths")
TEACHER, STUDENT, LARGE = "gpt2", "llama2", "qwen"


@benchmark
def main(
    material: Material,
    file: File,
    parts: Annotated[str, typer.Option(help="Parts to measure, by commas.")] = ",".join(PARTS),
    repeats: Repeats = 5,
    quick: Quick = False,
    seed: Seed = 0,
) -> Iterator[Measured]:
    """Measure tables and rows, and write the result file."""
    wanted = parts.split(",")
    if unknown := sorted(set(wanted) - set(PARTS)):
        raise typer.BadParameter(f"expected parts of {', '.join(PARTS)}, got {', '.join(unknown)}")
    timings, results, raw = Timings(), dict[str, float](), dict[str, Any]()
    if "mined" in wanted:
        found, raw["mined"] = measure_tables(
            material, TEACHER, STUDENT, timings,
            repeats=repeats, sample=5 if quick else 200, seed=seed,
        )  # fmt: skip
        results["mined_gpt2_llama2_seconds"] = found["seconds"]
        results["mined_warm_milliseconds"] = found["warm_milliseconds"]
        results["mined_speedup_over_brute_force"] = found["speedup"]
    if "qwen" in wanted:
        found, raw["qwen"] = measure_tables(
            material, LARGE, STUDENT, timings, repeats=repeats, sample=0, seed=seed
        )
        results["mined_qwen_llama2_seconds"] = found["seconds"]
    if {"rows", "reference", "lengths"} & set(wanted):
        bench = AlignmentBench(material, TEACHER, STUDENT, seed)
    if "rows" in wanted:
        results["rows_per_second"], raw["rows"] = measure_modes(bench, timings, repeats, quick)
    if "reference" in wanted:
        results["rows_speedup_over_reference"], raw["reference"] = measure_reference(
            bench, timings, repeats, quick
        )
    if "lengths" in wanted:
        results["row_cost_8192_over_128"], raw["lengths"] = measure_lengths(
            bench, timings, repeats, quick
        )
    yield Measured(results, raw | {"seconds": timings.seconds}, seed)

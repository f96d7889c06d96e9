"""Speed of token alignment: ``python -m benchmarks.alignment --material FOLDER --json FILE``.

Vocabulary tables between public tokenizers against a loop over the vocabulary, and rows on real
text against per-token loops. Variants that form a ratio take turns, and medians are compared, so
that what else the machine does hits both.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.frame import Timings, machine, write_json
from benchmarks.rows import Bench, measure_lengths, measure_modes, measure_reference
from benchmarks.tables import measure_tables

PARTS = ("mined", "qwen", "rows", "reference", "lengths")
TEACHER, STUDENT, LARGE = "gpt2", "llama2", "qwen"


def main(
    material: Annotated[Path, typer.Option(help="Folder with tokenizers and datasets.")],
    json: Annotated[Path, typer.Option(help="File to write.")],
    parts: Annotated[str, typer.Option(help="What to measure, joined by commas.")] = ",".join(
        PARTS
    ),
    repeats: Annotated[int, typer.Option(min=1, help="Repeats of everything.")] = 5,
    quick: Annotated[bool, typer.Option(help="A check of the benchmark: sizes too small.")] = False,
    seed: Annotated[int, typer.Option(help="Of samples and made-up knowledge.")] = 0,
) -> None:
    """Measure and write the result file."""
    wanted = parts.split(",")
    if unknown := sorted(set(wanted) - set(PARTS)):
        raise typer.BadParameter(f"parts {', '.join(unknown)}; allowed: {', '.join(PARTS)}")
    started, about = time.monotonic(), machine()
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
        bench = Bench(material, TEACHER, STUDENT, seed)
    if "rows" in wanted:
        results["rows_per_second"], raw["rows"] = measure_modes(
            bench, timings, repeats=repeats,
            tokens=5_000 if quick else 900_000, dtw_tokens=1_000 if quick else 90_000,
        )  # fmt: skip
    if "reference" in wanted:
        results["rows_speedup_over_reference"], raw["reference"] = measure_reference(
            bench, timings, repeats=repeats, tokens=1_000 if quick else 45_000
        )
    if "lengths" in wanted:
        results["row_cost_8192_over_128"], raw["lengths"] = measure_lengths(
            bench, timings, repeats=repeats,
            tokens=1 << (13 if quick else 19), slow_tokens=1 << (10 if quick else 13),
        )  # fmt: skip
    arguments = f" --parts {parts} --repeats {repeats} --seed {seed}" + " --quick" * quick
    write_json(
        json,
        command=f"python -m benchmarks.alignment --material MATERIAL --json FILE{arguments}",
        seed=seed,
        started=started,
        about=about,
        results=results,
        raw=raw | {"seconds": timings.seconds},
    )


if __name__ == "__main__":
    typer.run(main)

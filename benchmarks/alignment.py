"""Speed of token alignment: ``python -m benchmarks.alignment --material FOLDER --json FILE``.

Vocabulary tables between public tokenizers against a loop over the vocabulary, and rows on real
text against per-token loops. Variants that form a ratio take turns, and medians are compared, so
that what else the machine does hits both.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Annotated, Any

import typer

from benchmarks.harness import File, Material, Measured, Quick, Repeats, Seed, Timings, benchmark
from benchmarks.projection_speed import (
    AlignmentBench,
    measure_lengths,
    measure_modes,
    measure_reference,
)
from benchmarks.vocabulary_tables import measure_event_tables, measure_tables

PARTS = ("mined", "qwen", "events", "rows", "reference", "lengths")
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
    bench = cache(partial(AlignmentBench, material, TEACHER, STUDENT, seed))
    tables = partial(measure_tables, material, timings=timings, repeats=repeats, seed=seed)
    measures = {
        "mined": partial(tables, TEACHER, STUDENT, sample=5 if quick else 200),
        "qwen": partial(tables, LARGE, STUDENT, sample=0),
        "events": partial(
            measure_event_tables, material, TEACHER, STUDENT, timings=timings, repeats=repeats
        ),
        "rows": lambda: measure_modes(bench(), timings, repeats, quick),
        "reference": lambda: measure_reference(bench(), timings, repeats, quick),
        "lengths": lambda: measure_lengths(bench(), timings, repeats, quick),
    }
    for part in wanted:
        found, raw[part] = measures[part]()
        results |= found
    yield Measured(results, raw | {"seconds": timings.seconds}, seed)

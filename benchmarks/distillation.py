"""What distilling and telling cost: ``python -m benchmarks.distillation --material M --json FILE``.

One step (loss and gradient by the hidden states) over a vocabulary of 32,000: plain cross-entropy
over logits, the library's fused loss with 1, 4 and 8 teachers, and one dense target per teacher as
public code has it. Losses that form a ratio take turns, and medians are compared, so that what else
the machine does hits both. Merging the teachers is part of every fused step, although a federation
does it once a round.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.frame import Timings, machine, write_json
from benchmarks.losses import Case, Size, peak_memory
from benchmarks.wire import bodies, measure_wire
from fedfuse.config.sections import KnowledgeConfig

TEACHERS = (1, 4, 8)
MANY = TEACHERS[-1]


def main(
    material: Annotated[Path, typer.Option(help="Folder with tokenizers, datasets and models.")],
    json: Annotated[Path, typer.Option(help="File to write.")],
    repeats: Annotated[int, typer.Option(min=1, help="Repeats of every step.")] = 11,
    quick: Annotated[bool, typer.Option(help="A check of the benchmark: sizes too small.")] = False,
    seed: Annotated[int, typer.Option(help="Of made-up states, labels and teachers.")] = 0,
) -> None:
    """Measure and write the result file."""
    started, about = time.monotonic(), machine()
    small = Size(rows=20, vocab=300, width=16, k=4) if quick else Size()
    large = Size(rows=40, vocab=3_000, width=16, k=4) if quick else Size(rows=4096)
    timings = Timings()
    results = measure_time(small, timings, repeats=repeats, seed=seed)
    found, memory = measure_memory(large, seed=seed)
    known = bodies(material, KnowledgeConfig().k, seed=seed, quick=quick)
    of_wire, wires = measure_wire(
        known, timings, mass=KnowledgeConfig().mass, repeats=min(repeats, 5)
    )
    arguments = f" --repeats {repeats} --seed {seed}" + " --quick" * quick
    write_json(
        json,
        command=f"python -m benchmarks.distillation --material MATERIAL --json FILE{arguments}",
        seed=seed,
        started=started,
        about=about | {"torch_threads": torch.get_num_threads()},
        results=results | found | of_wire,
        raw={"seconds": timings.seconds, "peak_bytes": memory, "wire": wires},
    )


def measure_time(size: Size, timings: Timings, *, repeats: int, seed: int) -> dict[str, float]:
    """Seconds of a step over plain cross-entropy's, and over one dense target per teacher's."""
    cases = {teachers: Case(size, teachers, seed) for teachers in TEACHERS}
    steps = {"plain": cases[MANY].plain}
    steps |= {f"fused {teachers}": case.fused for teachers, case in cases.items()}
    steps[f"dense {MANY}"] = cases[MANY].dense
    for step in steps.values():
        step()  # the first calls set things up
    for _ in range(repeats):
        for name, step in steps.items():
            timings.measure(name, step)
    median = timings.median
    return {f"fused_over_ce_time_{n}": median(f"fused {n}") / median("plain") for n in TEACHERS} | {
        f"fused_over_dense_time_{MANY}": median(f"fused {MANY}") / median(f"dense {MANY}")
    }


def measure_memory(size: Size, *, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Peak bytes of a step beyond its input, over plain cross-entropy's and over one teacher's."""
    peaks = {"plain": peak_memory("plain", size, MANY, seed)}
    peaks |= {f"fused {n}": peak_memory("fused", size, n, seed) for n in TEACHERS}
    most = peaks[f"fused {MANY}"]
    results = {
        "fused_over_ce_memory": most / peaks["plain"],
        f"fused_memory_{MANY}_over_1": most / peaks["fused 1"],
    }
    return results, peaks


if __name__ == "__main__":
    typer.run(main)

"""What distilling and telling cost: ``python -m benchmarks.distillation --material M --json FILE``.

One step (loss and gradient by the hidden states) over a vocabulary of 32,000: plain cross-entropy
over logits, the library's fused loss with 1, 4 and 8 teachers, the same over events (GPT-2's in
Llama 2's vocabulary, all teachers on every row), the same where each teacher has a tokenizer of its
own ("apart"), and one dense target per teacher as public code has it. Losses that form a ratio take
turns, and medians are compared, so that what else the machine does hits both. Merging the teachers
is part of every fused step, although a federation does it once a round.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from benchmarks.codec import example_knowledge, measure_codec
from benchmarks.harness import File, Material, Measured, Quick, Repeats, Seed, Timings, benchmark
from benchmarks.losses import LossBench, StepSize, peak_memory
from benchmarks.material import load_tokenizer
from fedfuse.alignment.event_table import EventTable, event_table
from fedfuse.config.knowledge import KnowledgeConfig

TEACHERS = (1, 4, 8)
MANY = TEACHERS[-1]


def measure_time(
    size: StepSize, table: EventTable, timings: Timings, *, repeats: int, seed: int
) -> dict[str, float]:
    """Seconds of a step over plain cross-entropy's, and over one dense target per teacher's."""
    cases = {teachers: LossBench(size, teachers, seed, table) for teachers in TEACHERS}
    steps = {"plain": cases[MANY].plain}
    steps |= {f"fused {teachers}": case.fused for teachers, case in cases.items()}
    steps |= {f"events {teachers}": case.events for teachers, case in cases.items()}
    steps |= {f"apart {teachers}": case.apart for teachers, case in cases.items()}
    steps[f"dense {MANY}"] = cases[MANY].dense
    for step in steps.values():
        step()  # the first calls set things up
    timings.alternate(steps, repeats)
    median = timings.median
    return {
        f"{kind}_over_ce_time_{n}": median(f"{kind} {n}") / median("plain")
        for kind in ("fused", "events", "apart")
        for n in TEACHERS
    } | {f"fused_over_dense_time_{MANY}": median(f"fused {MANY}") / median(f"dense {MANY}")}


def measure_memory(
    size: StepSize, table: EventTable, *, seed: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Peak bytes of a step beyond its input, over plain cross-entropy's and over one teacher's."""
    peaks = {"plain": peak_memory("plain", size, MANY, seed)}
    peaks |= {f"fused {n}": peak_memory("fused", size, n, seed) for n in TEACHERS}
    peaks |= {f"events {n}": peak_memory("events", size, n, seed, table) for n in TEACHERS}
    peaks[f"apart {MANY}"] = peak_memory("apart", size, MANY, seed, table)
    most = peaks[f"fused {MANY}"]
    results = {
        "fused_over_ce_memory": most / peaks["plain"],
        "events_over_ce_memory": peaks[f"events {MANY}"] / peaks["plain"],
        "apart_over_ce_memory": peaks[f"apart {MANY}"] / peaks["plain"],
        f"fused_memory_{MANY}_over_1": most / peaks["fused 1"],
    }
    return results, peaks


@benchmark
def main(
    material: Material, file: File, repeats: Repeats = 11, quick: Quick = False, seed: Seed = 0
) -> Iterator[Measured]:
    """Measure steps, memory and the codec, and write the result file."""
    # GPT-2 teaches Llama 2, whose vocabulary has 32,000 tokens.
    teacher, student = load_tokenizer(material, "gpt2"), load_tokenizer(material, "llama2")
    table = event_table(teacher, student)
    vocab = len(table.order)
    small = StepSize(rows=20, vocab=vocab, width=16, k=4) if quick else StepSize(vocab=vocab)
    large = replace(small, rows=40 if quick else 4096)
    timings = Timings()
    results = measure_time(small, table, timings, repeats=repeats, seed=seed)
    found, memory = measure_memory(large, table, seed=seed)
    known = example_knowledge(material, KnowledgeConfig().k, seed=seed, quick=quick)
    of_codec, codecs = measure_codec(
        known, timings, top_p=KnowledgeConfig().top_p, repeats=min(repeats, 5)
    )
    yield Measured(
        results | found | of_codec,
        {"seconds": timings.seconds, "peak_bytes": memory, "wire": codecs},
        seed,
    )

"""How long it takes to carry a teacher's knowledge to a student's rows, by mode and length."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from benchmarks.harness import Timings
from benchmarks.material import cut, load_text, load_tokenizer
from benchmarks.plain_alignment import align_and_project
from fedfuse.alignment.event_rows import PlaceTables, event_distribution, space_shifts
from fedfuse.alignment.event_table import event_table
from fedfuse.alignment.positions import MODES, align_rows
from fedfuse.alignment.projection import project
from fedfuse.alignment.spelling import spaced
from fedfuse.alignment.vocabulary_map import minimum_edit_distance_table
from fedfuse.config.knowledge import KnowledgeConfig
from fedfuse.data.sample import Sample, fingerprint
from fedfuse.events import EventDistribution
from fedfuse.knowledge.record import Knowledge
from fedfuse.sparse import DUPLICATE_RULES, SparseDistribution
from fedfuse.tokenizers.label_rows import LabelRows, label_rows

TOP = 16
# The run config's default.
DEFAULT = KnowledgeConfig().alignment
# Longer than any text here: nothing is cut off.
_UNLIMITED = 1 << 40


@dataclass(frozen=True, slots=True)
class AlignmentCase:
    """Label rows of texts as teacher and student see them, and the teacher's made-up knowledge."""

    source: LabelRows
    target: LabelRows
    knowledge: Knowledge

    @property
    def target_rows(self) -> int:
        """Number of the student's label rows."""
        return len(self.target.token)


class AlignmentBench:
    """A teacher's and a student's tokenizer, their table, and text to measure on."""

    def __init__(self, material: Path, source: str, target: str, seed: int) -> None:
        self.source = load_tokenizer(material, source)
        self.target = load_tokenizer(material, target)
        self.table = minimum_edit_distance_table(self.source, self.target, None)
        self._events = {s: event_table(self.source, self.target, s) for s in (0, 1, -1)}
        self.source_bytes = self.source.vocabulary_bytes
        self.target_bytes = self.target.vocabulary_bytes
        self._spaced = spaced(self.source_bytes), spaced(self.target_bytes)
        self._text = load_text(material)
        self._ends = self.source.encode([self._text])[0].ends
        self._generator = np.random.default_rng(seed)

    def case(self, length: int, tokens: int) -> AlignmentCase:
        """Plain texts of ``length`` of the teacher's tokens, ``tokens`` in all: each is a row."""
        samples = [Sample("", text) for text in cut(self._text, self._ends, length, tokens)]
        _, source = label_rows(self.source, samples, _UNLIMITED)
        _, target = label_rows(self.target, samples, _UNLIMITED)
        knowledge = Knowledge(
            offsets=source.offsets,
            label_bytes=np.array([sample.answer_bytes for sample in samples]),
            tokenizer=self.source.fingerprint,
            public=fingerprint(samples),
            **made_up(source.token, self.source.vocab_size, self._generator),
        )
        return AlignmentCase(source, target, knowledge)

    def library(
        self,
        case: AlignmentCase,
        mode: str = DEFAULT,
        duplicate_tokens: str = DUPLICATE_RULES[0],
        unaligned_positions: str = "skip",
    ) -> SparseDistribution | EventDistribution:
        """Align and project, with what a run has ready: token bytes and tables."""
        alignment = align_rows(
            case.source, case.target, mode, self.source_bytes, self.target_bytes, self.table
        )
        knowledge = case.knowledge.distribution
        if mode == "events":
            rows = case.source, case.target
            shift = space_shifts(*rows, alignment, *self._spaced)
            tables = PlaceTables.of_rows(shift, self._events.__getitem__)
            label_logprob = case.knowledge.label_logprob
            return event_distribution(knowledge, label_logprob, *rows, alignment, tables)
        return project(
            knowledge,
            self.table,
            alignment,
            case.target,
            duplicate_tokens=duplicate_tokens,
            unaligned_positions=unaligned_positions,
        )


def made_up(
    label: Int64[ndarray, " rows"], vocabulary: int, generator: np.random.Generator
) -> dict[str, ndarray]:
    """Distributions such as a language model has: the label mostly among the first entries.

    The others are drawn by Zipf's law over token ids (byte pairs that were merged early are
    frequent), and so is the probability over the entries of a row. By the names of ``Knowledge``.
    """
    rows = len(label)
    frequency = 1 / np.arange(10, vocabulary + 10)
    ids = np.searchsorted(frequency.cumsum() / frequency.sum(), generator.random((rows, TOP))).clip(
        max=vocabulary - 1
    )
    known = generator.random(rows) < 0.9
    ids[known, 0] = label[known]
    while True:
        order = np.argsort(ids, axis=1, kind="stable")  # a label in column 0 is the first of equals
        by_id = np.take_along_axis(ids, order, axis=1)
        again = np.zeros_like(ids, dtype=bool)
        np.put_along_axis(again, order[:, 1:], by_id[:, 1:] == by_id[:, :-1], axis=1)
        if not again.any():
            break
        ids[again] = generator.integers(vocabulary, size=int(again.sum()))
    place = np.minimum(generator.geometric(0.6, rows) - 1, TOP - 1)
    each = np.arange(rows)
    ids[each, 0], ids[each, place] = ids[each, place], ids[each, 0].copy()
    steepness = generator.uniform(0.8, 2.5, (rows, 1))
    share = np.arange(1.0, TOP + 1) ** -steepness
    outside = generator.uniform(0.02, 0.3, rows)
    share *= ((1 - outside) / share.sum(axis=1))[:, None]
    logs = np.log(share).astype(np.float32)
    tail_logprob = np.log(outside).astype(np.float32)
    unknown = tail_logprob - np.float32(np.log(vocabulary))
    return {
        "indices": ids,
        "logprobs": logs,
        "tail_logprob": tail_logprob,
        "label_logprob": np.where(known, logs[each, place], unknown),
    }


def reference(bench: AlignmentBench, case: AlignmentCase) -> Any:
    """The same case for plain Python, as a call without arguments; what it needs are lists."""
    table = dict(enumerate(bench.table.best.tolist()))
    source, target = bench.source_bytes.bytes, bench.target_bytes.bytes
    kept = zip(case.knowledge.indices.tolist(), case.knowledge.logprobs.tolist(), strict=True)
    entries = [list(zip(ids, logs, strict=True)) for ids, logs in kept]
    spans = (pairwise(rows.offsets.tolist()) for rows in (case.source, case.target))
    texts = [
        (case.source.token[a:b].tolist(), case.target.token[c:d].tolist(), entries[a:b])
        for (a, b), (c, d) in zip(*spans, strict=True)
    ]
    return lambda: [
        align_and_project(one, other, source, target, kept, table) for one, other, kept in texts
    ]


def measure_modes(
    bench: AlignmentBench, timings: Timings, repeats: int, quick: bool
) -> tuple[dict[str, float], dict[str, Any]]:
    """Target rows per second in default mode, and in every mode with every rule for duplicates."""
    plain = bench.case(150, 5_000 if quick else 900_000)
    dtw = bench.case(150, 1_000 if quick else 90_000)
    cases = {mode: dtw if mode == "dtw" else plain for mode in MODES}
    for mode, case in cases.items():
        bench.library(case, mode)  # the first call pays for memory that later ones find ready
    variants = {
        f"{mode} {rule}": (mode, rule)
        for mode in MODES
        for rule in (DUPLICATE_RULES[:1] if mode == "events" else DUPLICATE_RULES)
    }
    jobs = {
        f"rows {name}": partial(bench.library, cases[mode], mode, rule)
        for name, (mode, rule) in variants.items()
    }
    timings.alternate(jobs, repeats)
    speed = {
        name: cases[mode].target_rows / timings.median(f"rows {name}")
        for name, (mode, _) in variants.items()
    }
    raw = {
        "rows_per_second": speed,
        "target_rows": plain.target_rows,
        "target_rows_dtw": dtw.target_rows,
        "tokens_per_text": 150,
        "k": TOP,
    }
    return {"rows_per_second": speed[f"{DEFAULT} {DUPLICATE_RULES[0]}"]}, raw


def measure_reference(
    bench: AlignmentBench, timings: Timings, repeats: int, quick: bool
) -> tuple[dict[str, float], dict[str, Any]]:
    """How many times faster than plain Python the default mode is, on the same texts."""
    case = bench.case(150, 1_000 if quick else 45_000)
    plain, default = reference(bench, case), partial(bench.library, case)
    dtw = partial(bench.library, case, "dtw", "first", "one-hot")
    default()
    dtw()
    for _ in range(repeats):
        timings.measure("reference", plain)
        # Short against the reference: several calls, so that one hiccup is not the result.
        timings.measure("reference's texts", default, calls=5)
        timings.measure("reference's texts dtw", dtw)
    slow, fast = timings.median("reference"), timings.median("reference's texts")
    fast_dtw = timings.median("reference's texts dtw")
    raw = {
        "target_rows": case.target_rows,
        "reference_rows_per_second": case.target_rows / slow,
        "library_rows_per_second": case.target_rows / fast,
        "library_dtw_rows_per_second": case.target_rows / fast_dtw,
        "speedup_dtw": slow / fast_dtw,
    }
    return {"rows_speedup_over_reference": slow / fast}, raw


def measure_lengths(
    bench: AlignmentBench, timings: Timings, repeats: int, quick: bool
) -> tuple[dict[str, float], dict[str, Any]]:
    """Cost of a row in long texts over its cost in short ones, for the same number of rows.

    "dtw" and the reference, which have cells by the square of the length, get fewer rows and no
    long texts.
    """
    short, middle, long = 128, 1024, 8192
    cases = {length: bench.case(length, 1 << (13 if quick else 19)) for length in (short, long)}
    slow = {length: bench.case(length, 1 << (10 if quick else 13)) for length in (short, middle)}
    jobs = {f"lengths {length}": partial(bench.library, case) for length, case in cases.items()}
    for length, case in slow.items():
        jobs[f"lengths dtw {length}"] = partial(bench.library, case, "dtw")
    for job in jobs.values():
        job()
    jobs |= {f"lengths reference {length}": reference(bench, case) for length, case in slow.items()}
    timings.alternate(jobs, repeats)

    def ratio(name: str, cases: dict[int, AlignmentCase], over: int) -> float:
        cost = {n: timings.median(f"{name} {n}") / case.target_rows for n, case in cases.items()}
        return cost[over] / cost[short]

    raw = {
        f"reference_{middle}_over_{short}": ratio("lengths reference", slow, middle),
        f"dtw_{middle}_over_{short}": ratio("lengths dtw", slow, middle),
        "target_rows": {length: case.target_rows for length, case in cases.items()},
        "target_rows_slow": {length: case.target_rows for length, case in slow.items()},
    }
    return {f"row_cost_{long}_over_{short}": ratio("lengths", cases, long)}, raw

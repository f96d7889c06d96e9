"""How long it takes to carry a teacher's knowledge to a student's rows, by mode and length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from benchmarks.harness import Timings
from benchmarks.material import cut, load_text, load_tokenizer
from benchmarks.plain_alignment import align_and_project
from fedfuse.alignment.positions import MODES, align_rows
from fedfuse.alignment.projection import project
from fedfuse.alignment.spelling import Spelling, spell, spelled_table
from fedfuse.alignment.vocabulary_map import VocabularyTable, minimum_edit_distance_table
from fedfuse.config.knowledge import KnowledgeConfig
from fedfuse.data.sample import Sample, fingerprint
from fedfuse.knowledge.record import Knowledge
from fedfuse.sparse import DUPLICATE_RULES, SparseDistribution
from fedfuse.tokenizers.label_rows import LabelRows, label_rows
from fedfuse.tokenizers.token_bytes import VocabularyBytes
from fedfuse.tokenizers.tokenizer import TextTokenizer

TOP = 16
# What a run does when it is told nothing.
DEFAULT = KnowledgeConfig().alignment
# Longer than any text here: nothing is cut off.
_UNLIMITED = 1 << 40


@dataclass(frozen=True, slots=True)
class AlignmentCase:
    """Texts as teacher and student see them, and what the teacher knows.

    Attributes:
        source: the teacher's label rows.
        target: the student's.
        knowledge: the teacher's, made up.
    """

    source: LabelRows
    target: LabelRows
    knowledge: Knowledge


class AlignmentBench:
    """A teacher's and a student's tokenizer, their table, and text to measure on."""

    def __init__(self, material: Path, source: str, target: str, seed: int) -> None:
        self.source: TextTokenizer = load_tokenizer(material, source)
        self.target: TextTokenizer = load_tokenizer(material, target)
        self.table: VocabularyTable = minimum_edit_distance_table(self.source, self.target, None)
        self.spelling: Spelling = spell(self.source, self.target, self.table)
        self.spelled: VocabularyTable = spelled_table(self.table, self.spelling)
        self.source_bytes: VocabularyBytes = self.source.vocabulary_bytes
        self.target_bytes: VocabularyBytes = self.target.vocabulary_bytes
        self._text = load_text(material)
        self._ends = self.source.encode([self._text])[0].ends
        self._generator = np.random.default_rng(seed)

    def case(self, length: int, tokens: int) -> AlignmentCase:
        """Plain texts of ``length`` of the teacher's tokens, ``tokens`` in all: each is a row."""
        samples = [Sample("", text) for text in cut(self._text, self._ends, length, tokens)]
        _, source = label_rows(self.source, samples, _UNLIMITED)
        _, target = label_rows(self.target, samples, _UNLIMITED)
        ids, logs, tail_logprob, label = made_up(
            source.token, self.source.vocab_size, self._generator
        )
        knowledge = Knowledge(
            offsets=source.offsets,
            indices=ids,
            logprobs=logs,
            tail_logprob=tail_logprob,
            label_logprob=label,
            label_bytes=np.array([sample.answer_bytes for sample in samples]),
            tokenizer=self.source.fingerprint,
            public=fingerprint(samples),
        )
        return AlignmentCase(source, target, knowledge)

    def warm_up(self, case: AlignmentCase, mode: str = DEFAULT) -> None:
        """The first call in a process pays for memory that later ones find ready."""
        self.library(case, mode)

    def library(
        self,
        case: AlignmentCase,
        mode: str = DEFAULT,
        duplicate_tokens: str = DUPLICATE_RULES[0],
        unaligned_positions: str = "skip",
    ) -> SparseDistribution:
        """Align and project, with what a run has ready: surfaces, table and spelling."""
        alignment = align_rows(
            case.source, case.target, mode, self.source_bytes, self.target_bytes, self.table
        )
        return project(
            case.knowledge.distribution,
            self.spelled if mode == "chain-rule" else self.table,
            alignment,
            case.target,
            source=case.source,
            spelling=self.spelling if mode == "chain-rule" else None,
            label_logprob=case.knowledge.label_logprob,
            duplicate_tokens=duplicate_tokens,
            unaligned_positions=unaligned_positions,
        )


def made_up(
    label: Int64[ndarray, " rows"], vocabulary: int, generator: np.random.Generator
) -> tuple[
    Int64[ndarray, "rows k"],
    Float32[ndarray, "rows k"],
    Float32[ndarray, " rows"],
    Float32[ndarray, " rows"],
]:
    """Distributions such as a language model has: the label mostly among the first entries.

    The others are drawn by Zipf's law over token ids (byte pairs that were merged early are
    frequent), and so is the probability over the entries of a row.

    Returns:
        Ids, descending log-probabilities, log of the tail mass, and the label's.
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
    return ids, logs, tail_logprob, np.where(known, logs[each, place], unknown)


def reference(bench: AlignmentBench, case: AlignmentCase) -> Any:
    """The same case for plain Python, as a call without arguments; what it needs are lists."""
    table = dict(enumerate(bench.table.best.tolist()))
    source, target = bench.source_bytes.bytes, bench.target_bytes.bytes
    entries = [
        list(zip(ids, logs, strict=True))
        for ids, logs in zip(
            case.knowledge.indices.tolist(), case.knowledge.logprobs.tolist(), strict=True
        )
    ]
    texts = [
        (case.source.token[a:b].tolist(), case.target.token[c:d].tolist(), entries[a:b])
        for (a, b), (c, d) in zip(_spans(case.source), _spans(case.target), strict=True)
    ]
    return lambda: [
        align_and_project(one, other, source, target, kept, table) for one, other, kept in texts
    ]


def _spans(rows: LabelRows) -> list[tuple[int, int]]:
    ends: list[int] = rows.offsets.tolist()
    return list(pairwise(ends))


def measure_modes(
    bench: AlignmentBench, timings: Timings, *, repeats: int, tokens: int, dtw_tokens: int
) -> tuple[float, dict[str, Any]]:
    """Target rows per second in default mode, and in every mode with every rule for duplicates."""
    cases = {False: bench.case(150, tokens), True: bench.case(150, dtw_tokens)}
    variants = {f"{mode} {rule}": (mode, rule) for mode in MODES for rule in DUPLICATE_RULES}
    for mode in MODES:
        bench.warm_up(cases[mode == "dtw"], mode)
    timings.alternate(
        {
            f"rows {name}": partial(bench.library, cases[mode == "dtw"], mode, rule)
            for name, (mode, rule) in variants.items()
        },
        repeats,
    )
    speed = {
        name: len(cases[mode == "dtw"].target.token) / timings.median(f"rows {name}")
        for name, (mode, _) in variants.items()
    }
    raw = {
        "rows_per_second": speed,
        "target_rows": len(cases[False].target.token),
        "target_rows_dtw": len(cases[True].target.token),
        "tokens_per_text": 150,
        "k": TOP,
    }
    return speed[f"{DEFAULT} {DUPLICATE_RULES[0]}"], raw


def measure_reference(
    bench: AlignmentBench, timings: Timings, *, repeats: int, tokens: int
) -> tuple[float, dict[str, Any]]:
    """How many times faster than plain Python the default mode is, on the same texts."""
    case = bench.case(150, tokens)
    run = reference(bench, case)
    bench.warm_up(case)
    bench.warm_up(case, "dtw")
    for _ in range(repeats):
        timings.measure("reference", run)
        # Short against the reference: several calls, so that one hiccup is not the result.
        timings.measure("reference's texts", partial(bench.library, case), calls=5)
        timings.measure(
            "reference's texts dtw", partial(bench.library, case, "dtw", "first", "one-hot")
        )
    rows, slow = len(case.target.token), timings.median("reference")
    raw = {
        "target_rows": rows,
        "reference_rows_per_second": rows / slow,
        "library_rows_per_second": rows / timings.median("reference's texts"),
        "library_dtw_rows_per_second": rows / timings.median("reference's texts dtw"),
        "speedup_dtw": slow / timings.median("reference's texts dtw"),
    }
    return slow / timings.median("reference's texts"), raw


def measure_lengths(
    bench: AlignmentBench,
    timings: Timings,
    *,
    repeats: int,
    tokens: int,
    slow_tokens: int,
    lengths: Sequence[int] = (128, 1024, 8192),
) -> tuple[float, dict[str, Any]]:
    """Cost of a row in long texts over its cost in short ones, for the same number of rows.

    Args:
        bench: tokenizers, table and text.
        timings: what the repeats are added to.
        repeats: of everything.
        tokens: in all, for the default mode; at least the longest length.
        slow_tokens: in all, for "dtw" and the reference, which have cells by the square of length.
        lengths: short, middle, long; the slow ones are measured on the first two only.
    """
    short, middle, long = lengths
    quick = {length: bench.case(length, tokens) for length in (short, long)}
    slow = {length: bench.case(length, slow_tokens) for length in (short, middle)}
    runs = {length: reference(bench, case) for length, case in slow.items()}
    for case in quick.values():
        bench.warm_up(case)
    for case in slow.values():
        bench.warm_up(case, "dtw")
    jobs = {f"lengths {length}": partial(bench.library, case) for length, case in quick.items()}
    for length, case in slow.items():
        jobs[f"lengths dtw {length}"] = partial(bench.library, case, "dtw")
        jobs[f"lengths reference {length}"] = runs[length]
    timings.alternate(jobs, repeats)

    def ratio(name: str, cases: dict[int, AlignmentCase], over: int) -> float:
        cost = [
            timings.median(f"{name} {length}") / len(cases[length].target.token)
            for length in (over, short)
        ]
        return cost[0] / cost[1]

    raw = {
        f"reference_{middle}_over_{short}": ratio("lengths reference", slow, middle),
        f"dtw_{middle}_over_{short}": ratio("lengths dtw", slow, middle),
        "target_rows": {length: len(case.target.token) for length, case in quick.items()},
        "target_rows_slow": {length: len(case.target.token) for length, case in slow.items()},
    }
    return ratio("lengths", quick, long), raw

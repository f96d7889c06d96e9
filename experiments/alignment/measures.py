"""How good a teacher is after its knowledge was brought into another tokenizer's terms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64
from numpy import ndarray

from fedfuse.alignment.positions import align_rows
from fedfuse.alignment.projection import project
from fedfuse.alignment.spelling import spell, spelled_table
from fedfuse.alignment.vocabulary_map import minimum_edit_distance_table
from fedfuse.knowledge.record import Knowledge
from fedfuse.sparse import SparseDistribution
from fedfuse.tokenizers.label_rows import LabelRows
from fedfuse.tokenizers.tokenizer import TextTokenizer

TOP_M = 4


@dataclass(frozen=True, slots=True)
class AlignmentChoice:
    """One way to align.

    Attributes:
        alignment: "exact-boundary", "dtw" or "chain-rule".
        duplicate_tokens: "sum" or "first".
        mapping: "nearest" (one to one), "top-4" or "spelled".
    """

    alignment: str
    duplicate_tokens: str
    mapping: str

    def __str__(self) -> str:
        return f"{self.alignment} / {self.duplicate_tokens} / {self.mapping}"


CHOICES = [
    AlignmentChoice(alignment, duplicate_tokens, mapping)
    for alignment in ("dtw", "exact-boundary", "chain-rule")
    for duplicate_tokens in ("first", "sum")
    for mapping in ("nearest", f"top-{TOP_M}", "spelled")
    if mapping != "spelled" or alignment == "chain-rule"
]
PAPER = AlignmentChoice("dtw", "first", "nearest")


@dataclass(frozen=True, slots=True)
class Quality:
    """What is left of a teacher.

    Attributes:
        usable: share of the student's label rows that have a teacher.
        kept: probability that lands on tokens of the student, over what the teacher kept of its
            own distributions; usable rows and the teacher's rows that speak of them.
        loss_usable: cross-entropy of the projected teacher against the student's labels, nats per
            byte of the usable rows' tokens. Rows differ from choice to choice.
        loss_common: the same on the rows that are usable under every choice.
        loss_all: the same on all rows, where a row without a teacher costs what a student without
            any knowledge pays, the logarithm of its vocabulary.
    """

    usable: float
    kept: float
    loss_usable: float
    loss_common: float
    loss_all: float


def compare(
    knowledge: Knowledge,
    source_rows: LabelRows,
    source: TextTokenizer,
    target_rows: LabelRows,
    target: TextTokenizer,
    cache: Path,
) -> dict[AlignmentChoice, Quality]:
    """Every choice on one pair of tokenizers and one text."""
    tables = {
        "nearest": minimum_edit_distance_table(source, target, cache),
        f"top-{TOP_M}": minimum_edit_distance_table(source, target, cache, m=TOP_M),
    }
    spelling = spell(source, target, tables["nearest"])
    tables["spelled"] = spelled_table(tables["nearest"], spelling)
    shapes = source.vocabulary_bytes, target.vocabulary_bytes
    alignments = {
        mode: align_rows(source_rows, target_rows, mode, *shapes, tables["nearest"])
        for mode in {choice.alignment for choice in CHOICES}
    }
    found = {
        choice: project(
            knowledge.distribution,
            tables[choice.mapping],
            alignments[choice.alignment],
            target_rows,
            source=source_rows,
            spelling=spelling,
            label_logprob=knowledge.label_logprob,
            duplicate_tokens=choice.duplicate_tokens,
        )
        for choice in CHOICES
    }
    common = np.logical_and.reduce([projected.weight > 0 for projected in found.values()])
    bytes_of = np.maximum(target_rows.byte_end - target_rows.byte_start, 0)
    kept = np.exp(knowledge.logprobs.astype(np.float64)).sum(axis=1)
    return {
        choice: _quality(
            projected,
            target_rows,
            target.vocab_size,
            bytes_of,
            common,
            kept[alignments[choice.alignment].source_row],
        )
        for choice, projected in found.items()
    }


def _quality(
    projected: SparseDistribution,
    rows: LabelRows,
    vocab_size: int,
    bytes_of: ndarray,
    common: Bool[ndarray, " rows"],
    teacher_kept: Float64[ndarray, " rows"],
) -> Quality:
    usable = projected.weight > 0
    loss = label_loss(projected, rows, vocab_size)
    mass = np.exp(projected.logprobs[usable].astype(np.float64)).sum(axis=1)
    everywhere = np.where(usable, loss, np.log(vocab_size))
    return Quality(
        usable=float(usable.mean()),
        kept=float(mass.mean() / teacher_kept[usable].mean()),
        loss_usable=float(loss[usable].sum() / bytes_of[usable].sum()),
        loss_common=float(loss[common].sum() / bytes_of[common].sum()),
        loss_all=float(everywhere.sum() / bytes_of.sum()),
    )


def label_loss(
    projected: SparseDistribution, rows: LabelRows, vocab_size: int
) -> Float64[ndarray, " rows"]:
    """Nats that the projected teacher pays for each label.

    A label that is not among its entries has an equal share of the mass outside them.
    """
    used = projected.logprobs > -np.inf
    is_label = (projected.indices == rows.token[:, None]) & used
    at_label = np.where(is_label, projected.logprobs, -np.inf).max(axis=1)
    others = np.maximum(vocab_size - used.sum(axis=1), 1)
    outside = np.maximum(projected.tail_logprob, np.log(1e-12)) - np.log(others)
    return -np.where(is_label.any(axis=1), at_label, outside).astype(np.float64)

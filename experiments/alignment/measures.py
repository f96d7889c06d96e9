"""How good a teacher is after its knowledge was brought into another tokenizer's terms."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64
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


class AlignmentChoice(NamedTuple):
    """One way to align."""

    alignment: str  # "exact-boundary", "dtw" or "chain-rule"
    duplicate_tokens: str  # "sum" or "first"
    mapping: str  # "nearest" (one to one), "top-4" or "spelled"

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


class Quality(NamedTuple):
    """What is left of a teacher.

    Losses are its cross-entropy against the student's labels, nats per byte of the rows' tokens.
    Usable rows differ from choice to choice; a row without a teacher costs what a student without
    any knowledge pays, the logarithm of its vocabulary.
    """

    usable: float  # share of the student's label rows that have a teacher
    kept: float  # probability on tokens of the student, over what the teacher kept on these rows
    loss_usable: float  # on usable rows
    loss_common: float  # on the rows that are usable under every choice
    loss_all: float  # on all rows


def compare(
    knowledge: Knowledge,
    source_rows: LabelRows,
    source: TextTokenizer,
    target_rows: LabelRows,
    target: TextTokenizer,
    cache: Path,
) -> dict[AlignmentChoice, Quality]:
    """Every choice on one pair of tokenizers and one text."""
    nearest = minimum_edit_distance_table(source, target, cache)
    spelling = spell(source, target, nearest)
    tables = {
        "nearest": nearest,
        f"top-{TOP_M}": minimum_edit_distance_table(source, target, cache, m=TOP_M),
        "spelled": spelled_table(nearest, spelling),
    }
    shapes = source.vocabulary_bytes, target.vocabulary_bytes
    alignments = {
        mode: align_rows(source_rows, target_rows, mode, *shapes, nearest)
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
    sizes = np.maximum(target_rows.byte_end - target_rows.byte_start, 0)
    teacher_kept = _kept(knowledge.logprobs)

    def quality(choice: AlignmentChoice, projected: SparseDistribution) -> Quality:
        usable = projected.weight > 0
        loss = label_loss(projected, target_rows, target.vocab_size)
        of_teacher = teacher_kept[alignments[choice.alignment].source_row][usable]
        everywhere = np.where(usable, loss, np.log(target.vocab_size))
        return Quality(
            usable=float(usable.mean()),
            kept=float(_kept(projected.logprobs[usable]).mean() / of_teacher.mean()),
            loss_usable=float(loss[usable].sum() / sizes[usable].sum()),
            loss_common=float(loss[common].sum() / sizes[common].sum()),
            loss_all=float(everywhere.sum() / sizes.sum()),
        )

    return {choice: quality(choice, projected) for choice, projected in found.items()}


def _kept(logprobs: Float[ndarray, "rows k"]) -> Float64[ndarray, " rows"]:
    """Probability of all entries of a row."""
    found: ndarray = np.exp(logprobs.astype(np.float64)).sum(axis=1)
    return found


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
    found: ndarray = -np.where(is_label.any(axis=1), at_label, outside).astype(np.float64)
    return found

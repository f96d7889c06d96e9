"""Byte-aligned chunks: the shortest stretches of a text that both tokenizers cut out as a whole.

Minixhofer, Vulic and Ponti, "Universal Cross-Tokenizer Distillation via Approximate Likelihood
Matching" (ALM), arXiv 2503.20083: however the tokens inside overlap, teacher and student both have
a likelihood of a chunk, and these can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray

from fedfuse.alignment.positions import beyond_all_places, row_of_each_place
from fedfuse.tokenizers.label_rows import LabelRows


@dataclass(frozen=True, slots=True)
class Chunks:
    """B chunks, in the order of the text.

    Attributes:
        source_start: ``[B]`` first of the source's label rows whose tokens are the chunk.
        source_stop: ``[B]`` row behind its last.
        target_start: ``[B]`` the same of the target's.
        target_stop: ``[B]`` row behind its last.
    """

    source_start: Int64[ndarray, " chunks"]
    source_stop: Int64[ndarray, " chunks"]
    target_start: Int64[ndarray, " chunks"]
    target_stop: Int64[ndarray, " chunks"]

    def __getitem__(self, some: Bool[ndarray, " chunks"]) -> Chunks:
        """Some of the chunks."""
        return Chunks(
            self.source_start[some],
            self.source_stop[some],
            self.target_start[some],
            self.target_stop[some],
        )

    def of_source(self, rows: Bool[ndarray, " source_rows"]) -> Bool[ndarray, " chunks"]:
        """Whether all of a chunk's source rows are among some."""
        return _all(rows, self.source_start, self.source_stop)

    def of_target(self, rows: Bool[ndarray, " target_rows"]) -> Bool[ndarray, " chunks"]:
        """Whether all of a chunk's target rows are among some."""
        return _all(rows, self.target_start, self.target_stop)


def _all(
    rows: Bool[ndarray, " rows"], start: Int64[ndarray, " n"], stop: Int64[ndarray, " n"]
) -> Bool[ndarray, " n"]:
    others = np.append(0, np.cumsum(~rows))
    good: Bool[ndarray, " n"] = others[start] == others[stop]
    return good


def byte_aligned_chunks(source: LabelRows, target: LabelRows) -> Chunks:
    """Cut samples where tokens of both sides begin, and at their ends if they are the same.

    A token that covers no byte belongs to the chunk of its successor.

    Args:
        source: label rows of the samples under one tokenizer.
        target: label rows of the same samples under another.
    """
    length = beyond_all_places(source, target)
    source_row, source_key = row_of_each_place(source, length, last=False)
    target_row, target_key = row_of_each_place(target, length, last=False)
    common, of_source, of_target = np.intersect1d(
        source_key, target_key, assume_unique=True, return_indices=True
    )
    starts = np.stack([source_row[of_source], target_row[of_target]])  # [2, chunks]
    sample = common // length
    ends = np.stack([source.offsets[sample + 1], target.offsets[sample + 1]])
    last = np.ones(len(common), dtype=bool)
    last[:-1] = sample[1:] != sample[:-1]
    stops = np.where(last, ends, np.roll(starts, -1, axis=1))
    # A text that was cut off may end at different places.
    whole = np.ones(len(common), dtype=bool)
    whole[last] = source.byte_end[ends[0, last] - 1] == target.byte_end[ends[1, last] - 1]
    return Chunks(starts[0], stops[0], starts[1], stops[1])[whole]

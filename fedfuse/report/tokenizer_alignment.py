"""Alignment of two tokenizers, as text or as a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path

from rich.console import Console

from fedfuse.alignment.side_by_side import align_texts
from fedfuse.alignment.statistics import TableStatistics, table_examples, table_statistics
from fedfuse.alignment.vocabulary_map import VocabularyTable, minimum_edit_distance_table
from fedfuse.report.alignment import WIDTH, print_alignment, print_statistics
from fedfuse.report.alignment_html import render
from fedfuse.tokenizers.load import load_tokenizer
from fedfuse.tokenizers.tokenizer import TextTokenizer


@dataclass(frozen=True)
class TokenizerAlignment:
    """Two tokenizers and the vocabulary map from one to the other.

    Attributes:
        source: tokenizer whose tokens are mapped.
        target: tokenizer that they are mapped to.
        table: nearest target tokens of each source token, and their distances.
        unit: unit of the distances, one of ``UNITS``.
        names: names of source and target for readers.
    """

    source: TextTokenizer
    target: TextTokenizer
    table: VocabularyTable
    unit: str
    names: tuple[str, str]

    @cached_property
    def statistics(self) -> TableStatistics:
        """Numbers of exact counterparts, and of distances to the others."""
        return table_statistics(*self._pair)

    @property
    def _pair(self) -> tuple[TextTokenizer, TextTokenizer, VocabularyTable]:
        return self.source, self.target, self.table

    def explain(self, *texts: str, alignment: str = "events") -> str:
        """The tokens of both on texts, side by side, after counts of the whole vocabulary.

        Args:
            texts: one or more.
            alignment: how positions are paired, one of ``MODES``.
        """
        console = Console(file=StringIO(), width=WIDTH)
        self.print(console, texts, alignment)
        return str(console.file.getvalue())  # type: ignore[attr-defined]

    def print(self, console: Console, texts: Sequence[str], alignment: str) -> None:
        """Print what ``explain`` returns."""
        coverage, alignments = align_texts(*self._pair, texts, mode=alignment)
        print_statistics(console, *self.names, self.statistics, self.unit)
        print_alignment(console, coverage, alignments, alignment)

    def html(self, texts: Sequence[str], alignment: str) -> str:
        """The same as one self-contained HTML page."""
        coverage, alignments = align_texts(*self._pair, texts, mode=alignment)
        examples = table_examples(*self._pair)
        return render(
            *self.names,
            self.statistics,
            coverage,
            alignments,
            examples,
            unit=self.unit,
            mode=alignment,
        )


def align(
    source: str | TextTokenizer,
    target: str | TextTokenizer,
    *,
    unit: str = "bytes",
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TokenizerAlignment:
    """Map every token of one tokenizer to the nearest of another by edit distance (MinED).

    Args:
        source: tokenizer whose tokens are mapped, or its folder, ``tokenizer.json`` or hub id.
        target: tokenizer that they are mapped to, likewise.
        unit: unit of the distances, one of ``UNITS``.
        cache: folder of tables that are made once; None to keep none.
        progress: called with the number of tokens done, and of all.

    Raises:
        FedfuseError: for a tokenizer that cannot be loaded, or an unknown unit.
    """
    (ours, our_name), (theirs, their_name) = (
        (load_tokenizer(one), one) if isinstance(one, str) else (one, one.fingerprint[:12])
        for one in (source, target)
    )
    table = minimum_edit_distance_table(ours, theirs, cache, unit=unit, m=2, progress=progress)
    return TokenizerAlignment(ours, theirs, table, unit, (our_name, their_name))

"""Align another model's knowledge to one model's tokens and label rows.

FedMKT (arXiv 2406.02224), Algorithm 1, steps 4 and 9; Section 3.2 and Appendix B (MinED).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from fedfuse.alignment.event_rows import PlaceTables, event_distribution, space_shifts
from fedfuse.alignment.event_table import EventTable, event_table
from fedfuse.alignment.positions import Alignment, align_rows
from fedfuse.alignment.projection import project
from fedfuse.alignment.spelling import spaced
from fedfuse.alignment.vocabulary_map import VocabularyTable, minimum_edit_distance_table
from fedfuse.config.knowledge import KnowledgeConfig
from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError, check
from fedfuse.events import EventDistribution
from fedfuse.knowledge.record import MASS_TOLERANCE, Knowledge
from fedfuse.sparse import SparseDistribution
from fedfuse.tokenizers.dataset import scored_bytes
from fedfuse.tokenizers.label_rows import LabelRows, label_rows, verbatim_rows
from fedfuse.tokenizers.tokenizer import TextTokenizer

Aligned = SparseDistribution | EventDistribution


@dataclass(frozen=True, slots=True)
class TokenizerPair:
    """All that depends only on two tokenizers and the public samples; made once per pair.

    Attributes:
        rows: the source's label rows.
        label_bytes: ``[N]`` bytes of the answers that they predict.
        alignment: source rows that teach each target row.
        table: nearest target token of each source token; None for alignment "events" between
            different tokenizers.
        events: events at each target row, where there is no table.
    """

    rows: LabelRows
    label_bytes: Int64[ndarray, " samples"]
    alignment: Alignment
    table: VocabularyTable | None = None
    events: PlaceTables | None = None


class KnowledgeAligner:
    """Aligns others' knowledge to one model's tokens and rows; keeps one pair per tokenizer.

    Args:
        tokenizer: the model's own.
        public: the public samples.
        max_length: tokens of a sample; what is beyond is cut off.
        config: rules of alignment and projection; see ``align_rows`` and ``project``.
        cache: folder of tables that are made once; None for none.

    Raises:
        FedfuseError: for a rule of projection that does not go with alignment "events".
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        public: Sequence[Sample],
        max_length: int,
        config: KnowledgeConfig,
        cache: Path | None = None,
    ) -> None:
        if config.alignment == "events":
            for key, only in (("duplicate_tokens", "sum"), ("unaligned_positions", "skip")):
                found = getattr(config, key)
                name = f"knowledge.{key.replace('_', '-')} with alignment 'events'"
                check(name, repr(found), repr(only), found == only)
        self.tokenizer = tokenizer
        self._public = list(public)
        self._max_length, self._config, self._cache = max_length, config, cache
        _, self.rows = label_rows(tokenizer, public, max_length)
        self._pairs: dict[str, TokenizerPair] = {}
        self._tables: dict[str, VocabularyTable] = {}
        self._event_tables: dict[tuple[str, int], EventTable] = {}

    def for_samples(self, public: Sequence[Sample]) -> KnowledgeAligner:
        """The same for other samples; what depends on tokenizers alone is shared."""
        arguments = (self._max_length, self._config, self._cache)
        other = KnowledgeAligner(self.tokenizer, public, *arguments)
        other._tables, other._event_tables = self._tables, self._event_tables
        return other

    def pair(self, source: TextTokenizer) -> TokenizerPair:
        """What is needed to align knowledge in another model's tokens."""
        known = self._pairs.get(source.fingerprint)
        if known is None:
            known = self._pairs[source.fingerprint] = self._new_pair(source)
        return known

    def _new_pair(self, source: TextTokenizer) -> TokenizerPair:
        _, rows = label_rows(source, self._public, self._max_length)
        label_bytes = scored_bytes(self._public, rows, self._max_length)
        own, other = self.tokenizer.vocabulary_bytes, source.vocabulary_bytes
        if self._config.alignment == "events" and source.fingerprint != self.tokenizer.fingerprint:
            verbatim = verbatim_rows(source, self._public, rows)
            alignment = align_rows(rows, self.rows, "events", verbatim=verbatim)
            shift = space_shifts(rows, self.rows, alignment, spaced(other), spaced(own))
            tables = PlaceTables.of_rows(shift, partial(self._event_table, source))
            return TokenizerPair(rows, label_bytes, alignment, events=tables)
        table = self._table(source)
        alignment = align_rows(rows, self.rows, self._config.alignment, other, own, table)
        return TokenizerPair(rows, label_bytes, alignment, table)

    def _table(self, source: TextTokenizer) -> VocabularyTable:
        """MinED table from another tokenizer."""
        known = self._tables.get(source.fingerprint)
        if known is None:
            known = minimum_edit_distance_table(source, self.tokenizer, self._cache)
            self._tables[source.fingerprint] = known
        return known

    def _event_table(self, source: TextTokenizer, space_shift: int) -> EventTable:
        key = source.fingerprint, space_shift
        if key not in self._event_tables:
            table = event_table(source, self.tokenizer, space_shift, self._cache)
            self._event_tables[key] = table
        return self._event_tables[key]

    def verify(self, knowledge: Knowledge, source: TextTokenizer, public: str) -> None:
        """Refuse knowledge that is malformed or whose claimed losses contradict its distributions.

        The labels are public, so a client that lies about its loss to win the selection is caught:
        rows and bytes of each sample must be those of the public set, and the claimed
        log-probability that of the label among the kept entries or, where the label is not kept, no
        more than the smallest kept one and than all that is left. Neither wire form adds to the
        tolerance: a claim is rounded with its entry, or sent as a distance below the bound.

        Raises:
            FedfuseError: naming the field, what is expected and what it holds.
        """
        pair = self.pair(source)
        labels = pair.rows
        knowledge.validate(
            vocab_size=source.vocab_size,
            tokenizer=source.fingerprint,
            public=public,
            num_rows=len(labels.token),
        )
        expected = {"offsets": labels.offsets, "label_bytes": pair.label_bytes}
        for name, values in expected.items():
            if not np.array_equal(getattr(knowledge, name), values):
                raise FedfuseError(
                    f"knowledge.{name} is not what the public set has under this tokenizer"
                )
        used = np.isfinite(knowledge.logprobs)
        is_label = used & (knowledge.indices == labels.token[:, None])
        kept = is_label.any(1)
        at_label = np.where(is_label, knowledge.logprobs, -np.inf).max(1, initial=-np.inf)
        smallest = np.where(used, knowledge.logprobs, 0).min(1, initial=0)
        bound = np.minimum(smallest, knowledge.tail_logprob)
        claim = knowledge.label_logprob
        with np.errstate(invalid="ignore"):
            wrong = np.where(kept, np.abs(claim - at_label), claim - bound)
        too_much = wrong > MASS_TOLERANCE
        if too_much.any():
            row = int(np.argmax(too_much))
            raise FedfuseError(
                f"knowledge.label_logprob claims {claim[row]:.4f} at row {row}; "
                f"its own distribution allows {(at_label if kept[row] else bound)[row]:.4f}"
            )

    def __call__(self, knowledge: Knowledge, source: TextTokenizer) -> Aligned:
        """Align another model's knowledge to the model's label rows.

        Returns:
            Over events for alignment "events" between different tokenizers, else over tokens.
        """
        pair = self.pair(source)
        if pair.events:
            return event_distribution(
                knowledge.distribution,
                knowledge.label_logprob,
                pair.rows,
                self.rows,
                pair.alignment,
                pair.events,
            )
        assert pair.table
        return project(
            knowledge.distribution,
            pair.table,
            pair.alignment,
            self.rows,
            duplicate_tokens=self._config.duplicate_tokens,
            unaligned_positions=self._config.unaligned_positions,
        )

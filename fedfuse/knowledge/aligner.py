"""Align another model's knowledge to one model's tokens and label rows.

FedMKT (arXiv 2406.02224), Algorithm 1, steps 4 and 9; Section 3.2 and Appendix B (MinED).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from fedfuse.alignment.chunks import byte_aligned_chunks
from fedfuse.alignment.event_rows import (
    PlaceTables,
    chunk_likelihoods,
    event_distribution,
    space_shifts,
)
from fedfuse.alignment.event_table import EventTable, event_table
from fedfuse.alignment.positions import align_rows
from fedfuse.alignment.projection import project
from fedfuse.alignment.spelling import spaced
from fedfuse.alignment.vocabulary_map import VocabularyTable, minimum_edit_distance_table
from fedfuse.config.knowledge import BY_EVENTS, KnowledgeConfig
from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError, check
from fedfuse.events import EventDistribution
from fedfuse.knowledge.proof import proven
from fedfuse.knowledge.record import MASS_TOLERANCE, Knowledge
from fedfuse.sparse import SparseDistribution
from fedfuse.tokenizers.dataset import scored_bytes
from fedfuse.tokenizers.label_rows import (
    LabelRows,
    label_rows,
    unspelled_bytes,
    verbatim_rows,
)
from fedfuse.tokenizers.tokenizer import TextTokenizer

Aligned = SparseDistribution | EventDistribution


@dataclass(frozen=True, slots=True)
class TokenizerPair:
    """All that depends only on two tokenizers and the public samples; made once per pair.

    Attributes:
        rows: the source's label rows.
        label_bytes: ``[N]`` bytes of the answers that they predict.
        unspelled_bytes: ``[T_s]`` bytes of the answers that a row's label is not.
        project: from the source's knowledge to the target's rows.
    """

    rows: LabelRows
    label_bytes: Int64[ndarray, " samples"]
    unspelled_bytes: Int64[ndarray, " source_rows"]
    project: Callable[[Knowledge], Aligned]


class KnowledgeAligner:
    """Aligns others' knowledge to one model's tokens and rows; keeps one pair per tokenizer.

    Args:
        tokenizer: the model's own.
        public: the public samples.
        max_length: tokens of a sample; what is beyond is cut off.
        config: rules of alignment and projection; see ``align_rows`` and ``project``.
        cache: folder of tables that are made once; None for none.

    Raises:
        FedfuseError: for rules of the config that do not go together.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        public: Sequence[Sample],
        max_length: int,
        config: KnowledgeConfig,
        cache: Path | None = None,
    ) -> None:
        if found := config.contradictions():
            raise FedfuseError("; ".join(found))
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
        unspelled = unspelled_bytes(source, self._public, rows, label_bytes)
        equal, rule = source.fingerprint == self.tokenizer.fingerprint, self._config.alignment
        if rule == "alm" or (rule in BY_EVENTS and not equal):
            project = self._by_events(source, rows)
        else:
            project = self._by_tokens(source, rows)
        return TokenizerPair(rows, label_bytes, unspelled, project)

    def _by_events(self, source: TextTokenizer, rows: LabelRows) -> Callable[[Knowledge], Aligned]:
        """Projection onto events, the likelihoods of chunks, or both."""
        verbatim, own_verbatim = (
            verbatim_rows(tokenizer, self._public, found)
            for tokenizer, found in ((source, rows), (self.tokenizer, self.rows))
        )
        alignment = align_rows(rows, self.rows, "events", verbatim=verbatim)
        chunks = byte_aligned_chunks(rows, self.rows)
        chunks = chunks[chunks.of_source(verbatim) & chunks.of_target(own_verbatim)]
        if self._config.alignment == "events":  # elsewhere events say all that a chunk says
            chunks = chunks[~chunks.of_target(alignment.source_row >= 0)]
        if self._config.alignment == "alm":
            orders = np.arange(self.tokenizer.vocab_size, dtype=np.int32)[None]
            nothing = EventDistribution.empty(orders, len(self.rows.token), 0)
            return lambda known: chunk_likelihoods(nothing, known.label_logprob, chunks)
        spaces = (spaced(t.vocabulary_bytes) for t in (source, self.tokenizer))
        shift = space_shifts(rows, self.rows, alignment, *spaces)
        tables = PlaceTables.of_rows(shift, partial(self._event_table, source))

        def project_onto_events(known: Knowledge) -> EventDistribution:
            label_logprob = known.label_logprob
            found = event_distribution(
                known.distribution, label_logprob, rows, self.rows, alignment, tables
            )
            return chunk_likelihoods(found, label_logprob, chunks)

        return project_onto_events

    def _by_tokens(self, source: TextTokenizer, rows: LabelRows) -> Callable[[Knowledge], Aligned]:
        """Projection onto the nearest tokens; of equal tokenizers, onto the tokens themselves."""
        own, other = self.tokenizer.vocabulary_bytes, source.vocabulary_bytes
        table, rule = self._table(source), self._config.alignment
        mode = "exact-boundary" if rule in BY_EVENTS else rule
        alignment = align_rows(rows, self.rows, mode, other, own, table)
        return lambda known: project(
            known.distribution,
            table,
            alignment,
            self.rows,
            duplicate_tokens=self._config.duplicate_tokens,
            unaligned_positions=self._config.unaligned_positions,
        )

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

        Rows and bytes of each sample must be those of the public set, and the claimed
        log-probability that of the label among the kept entries or, where the label is not kept, no
        more than the smallest kept one and than all that is left. Neither wire form adds to the
        tolerance: a claim is rounded with its entry, or sent as a distance below the bound. A claim
        that passes is still no proof: see ``proven``.

        Raises:
            FedfuseError: naming the field, what is expected and what it holds.
        """
        pair = self.pair(source)
        check("knowledge.k", knowledge.k, "at least 1", knowledge.k or not self._config.k)
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

    def proven(self, knowledge: Knowledge, source: TextTokenizer) -> Knowledge:
        """Knowledge with what its distributions prove of the labels; see ``proof.proven``.

        Raises:
            FedfuseError: for knowledge of other samples.
        """
        pair = self._pair_of(knowledge, source)
        return proven(knowledge, pair.rows.token, pair.unspelled_bytes, source.vocab_size)

    def __call__(self, knowledge: Knowledge, source: TextTokenizer) -> Aligned:
        """Align another model's knowledge to the model's label rows.

        Returns:
            Over events for alignment "alm", and for "events" and "events+alm" between different
            tokenizers; else over tokens.

        Raises:
            FedfuseError: for knowledge of other samples.
        """
        return self._pair_of(knowledge, source).project(knowledge)

    def _pair_of(self, knowledge: Knowledge, source: TextTokenizer) -> TokenizerPair:
        pair = self.pair(source)
        found, expected = knowledge.num_rows, len(pair.rows.token)
        check("knowledge.num_rows", found, expected, found == expected)
        return pair

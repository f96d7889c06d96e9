"""Translate a foreign model's knowledge into one's own vocabulary and positions.

FedMKT (arXiv 2406.02224), Algorithm 1, steps 4 and 9; Section 3.2 and Appendix B (MinED).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from fedfuse.alignment.positions import Alignment, align_rows
from fedfuse.alignment.projection import project
from fedfuse.alignment.spelling import Spelling, spell, spelled_table
from fedfuse.alignment.vocabulary_map import VocabularyTable, minimum_edit_distance_table
from fedfuse.config.knowledge import KnowledgeConfig
from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError
from fedfuse.knowledge.record import MASS_TOLERANCE, Knowledge
from fedfuse.sparse import SparseDistribution
from fedfuse.tokenizers.dataset import scored_bytes
from fedfuse.tokenizers.label_rows import LabelRows, label_rows
from fedfuse.tokenizers.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class TokenizerPair:
    """What depends on two tokenizers and the public text alone; made once per pair.

    Attributes:
        rows: the source's label rows on the public set.
        label_bytes: ``[N]`` bytes of the answers that they predict.
        table: where a source token's mass goes: to the nearest target token or, for
            alignment "chain-rule", to the first one of its spelling.
        alignment: the source rows that teach each target row.
        spelling: source tokens in terms of target tokens; only for alignment "chain-rule".
    """

    rows: LabelRows
    label_bytes: Int64[ndarray, " samples"]
    table: VocabularyTable
    alignment: Alignment
    spelling: Spelling | None


class KnowledgeAligner:
    """Translates into one model's terms; keeps one dictionary per foreign tokenizer.

    Args:
        tokenizer: the model's own.
        public: the public samples.
        max_length: tokens of a sample; what is beyond is cut off.
        config: rules of alignment and projection; see ``align_rows`` and ``project``.
        cache: folder of vocabulary maps; None for none.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        public: Sequence[Sample],
        max_length: int,
        config: KnowledgeConfig,
        cache: Path | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self._public = list(public)
        self._max_length, self._config, self._cache = max_length, config, cache
        _, self.rows = label_rows(tokenizer, public, max_length)
        self._pairs: dict[str, TokenizerPair] = {}
        self._vocabularies: dict[str, tuple[VocabularyTable, Spelling | None]] = {}

    def for_samples(self, public: Sequence[Sample]) -> KnowledgeAligner:
        """The same for other samples; what depends on tokenizers alone is shared."""
        arguments = (self._max_length, self._config, self._cache)
        other = KnowledgeAligner(self.tokenizer, public, *arguments)
        other._vocabularies = self._vocabularies
        return other

    def pair(self, source: TextTokenizer) -> TokenizerPair:
        """The dictionary from a foreign tokenizer."""
        known = self._pairs.get(source.fingerprint)
        if known is None:
            _, rows = label_rows(source, self._public, self._max_length)
            table, spelling = self._vocabulary(source)
            alignment = align_rows(
                rows,
                self.rows,
                self._config.alignment,
                source.vocabulary_bytes,
                self.tokenizer.vocabulary_bytes,
                table,
            )
            label_bytes = scored_bytes(self._public, rows, self._max_length)
            known = TokenizerPair(rows, label_bytes, table, alignment, spelling)
            self._pairs[source.fingerprint] = known
        return known

    def _vocabulary(self, source: TextTokenizer) -> tuple[VocabularyTable, Spelling | None]:
        known = self._vocabularies.get(source.fingerprint)
        if known is None:
            table, spelling = minimum_edit_distance_table(source, self.tokenizer, self._cache), None
            if self._config.alignment == "chain-rule":
                spelling = spell(source, self.tokenizer, table)
                table = spelled_table(table, spelling)
            known = self._vocabularies[source.fingerprint] = table, spelling
        return known

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
        dictionary = self.pair(source)
        labels = dictionary.rows
        knowledge.validate(
            vocab_size=source.vocab_size,
            tokenizer=source.fingerprint,
            public=public,
            num_rows=len(labels.token),
        )
        expected = {"offsets": labels.offsets, "label_bytes": dictionary.label_bytes}
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

    def __call__(self, knowledge: Knowledge, source: TextTokenizer) -> SparseDistribution:
        """Foreign knowledge on one's own label rows."""
        dictionary = self.pair(source)
        return project(
            knowledge.distribution,
            dictionary.table,
            dictionary.alignment,
            self.rows,
            source=dictionary.rows,
            spelling=dictionary.spelling,
            label_logprob=knowledge.label_logprob,
            duplicate_tokens=self._config.duplicate_tokens,
            unaligned_positions=self._config.unaligned_positions,
        )

    def identity(self, knowledge: Knowledge) -> SparseDistribution:
        """One's own knowledge, as a candidate beside translated ones."""
        return knowledge.distribution

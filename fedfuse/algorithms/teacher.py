"""A model that is not in this process: it teaches and is scored, and does not learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from fedfuse.algorithms.local_model import LocalModel
from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError
from fedfuse.evaluation.losses import SampleNLL
from fedfuse.knowledge.archive import KnowledgeArchive, entries_of, has_rows, input_keys
from fedfuse.knowledge.record import Knowledge
from fedfuse.knowledge.source import KnowledgeSource
from fedfuse.models.causal_lm import AdapterState
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tokenizers.tokenizer import TextTokenizer

_AT_ONCE = 64  # samples between two writes of what a model in this process knows


class Teacher(LocalModel):
    """A ``LocalModel`` without weights: a source answers for it, and what would train it raises.

    Args:
        name: name of the model.
        source: what answers.
        tokenizer: the model's.
    """

    learns = False

    def __init__(
        self,
        name: str,
        source: KnowledgeSource,
        tokenizer: TextTokenizer,
        *,
        public: Sequence[Sample],
        test: Sequence[Sample],
        questions: Sequence[Sample],
        max_length: int,
    ) -> None:
        self.name, self._source, self._tokenizer = name, source, tokenizer
        self._prepare(public=public, test=test, questions=questions, max_length=max_length)

    @property
    def tokenizer(self) -> TextTokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    @property
    def fingerprint(self) -> str:
        """None is known of weights that are elsewhere."""
        return ""

    @property
    def cover(self) -> str:
        """No adapter covers anything."""
        return ""

    @property
    def adapter(self) -> AdapterState:
        """No weights."""
        return {}

    @adapter.setter
    def adapter(self, state: AdapterState) -> None:
        if state:
            self._refuse("an adapter")

    def reset(self) -> None:
        """Nothing was learned."""

    def save_adapter(self, folder: Path) -> None:
        """There is none."""

    def learn(self, *_: Any, **__: Any) -> NoReturn:
        """Raise ``FedfuseError``."""
        self._refuse("training")

    def _refuse(self, what: str) -> NoReturn:
        raise FedfuseError(
            f"model {self.name!r}: expected no {what}: a model behind a URL, or a file of "
            "knowledge, teaches and does not learn"
        )

    def nll(self, data: TokenizedDataset) -> SampleNLL:
        """``[N]`` negative log-likelihood of each sample's answer, nats."""
        label_logprob = self._source.knowledge(data, 1)[0].label_logprob
        return np.bincount(
            data.rows.sample_of_row, weights=-label_logprob.astype(np.float64), minlength=len(data)
        )

    def knowledge(self, k: int, public: TokenizedDataset | None = None) -> Knowledge:
        """Knowledge of the public set, or of some of it."""
        return self.knowledge_with_contexts(k, public)[0]

    def knowledge_with_contexts(
        self, k: int, public: TokenizedDataset | None = None
    ) -> tuple[Knowledge, Float32[ndarray, " samples"]]:
        """``knowledge``, and context losses; NaN where unknown."""
        return self._source.knowledge(public or self.public, k)

    def base_losses(self, data: TokenizedDataset) -> SampleNLL:
        """The same as ``losses``."""
        return self.losses(data)

    def context_losses(
        self, public: TokenizedDataset | None = None
    ) -> Float32[ndarray, " samples"]:
        """Loss of the public prompts; see ``knowledge.contexts``."""
        return self.knowledge_with_contexts(1, public)[1]

    def context_states(self, data: TokenizedDataset) -> None:
        """Nothing is known of hidden states."""


def extract_into(
    archive: KnowledgeArchive,
    model: LocalModel,
    texts: Sequence[tuple[TokenizedDataset, int]],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Put what a model in this process knows of data sets into an archive; what is there, stays.

    Args:
        archive: of the model.
        model: whose adapter, if it has learned, takes part.
        texts: data sets, and entries to keep of each row of them.
        on_progress: called with the number of samples that are done, and of all.
    """
    done, total = 0, sum(len(data) for data, _ in texts)
    for data, k in texts:
        for start in range(0, len(data), _AT_ONCE):
            which = np.arange(start, min(start + _AT_ONCE, len(data)))
            keys = input_keys(part := data.take(which))
            held = archive.get(keys)
            left = [
                i
                for i, key in enumerate(keys)
                if has_rows(part, i) and (key not in held or held[key].asked < k)
            ]
            if left:
                part = part.take(np.array(left))
                archive.put(entries_of(part, *model.knowledge_with_contexts(k, part), k))
            done += len(which)
            on_progress(done, total)

"""Where the knowledge of a teacher that does not learn comes from."""

from __future__ import annotations

from typing import Protocol

from jaxtyping import Float32
from numpy import ndarray

from fedfuse.knowledge.record import Knowledge
from fedfuse.tokenizers.dataset import TokenizedDataset


class KnowledgeSource(Protocol):
    """A model that can be asked, and not trained: an ``EndpointSource``, a ``KnowledgeArchive``."""

    def knowledge(
        self, data: TokenizedDataset, k: int
    ) -> tuple[Knowledge, Float32[ndarray, " samples"]]:
        """Knowledge of N samples, as ``extract_with_contexts`` has it of a model in this process.

        Args:
            data: encoded with the model's tokenizer.
            k: entries of a row to keep, at most.

        Returns:
            The knowledge, and ``[N]`` the context losses; NaN where unknown.

        Raises:
            FedfuseError: for samples that the source knows nothing of.
        """
        ...

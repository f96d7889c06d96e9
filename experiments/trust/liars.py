"""Clients that lie, the last of a federation: ``--set client=experiments.trust.liars:NAME``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from flwr.app import RecordDict

from clients.knowledge import KnowledgeClient
from experiments.trust.lies import LIES, guess
from fedfuse.config.run_config import derive_seed
from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError
from fedfuse.evaluation.options import OptionLogprobs
from fedfuse.knowledge.record import Knowledge
from fedfuse.tokenizers.dataset import TokenizedDataset


class Liar(KnowledgeClient):
    """Honest, but for the last client, which tells a lie and guesses the answers to questions."""

    lie: ClassVar[str] = ""

    @property
    def lies(self) -> bool:
        """Whether this is the last client."""
        return self.partition == self.client.node.num_partitions - 1

    def tell(self, knowledge: Knowledge, public: TokenizedDataset) -> Knowledge:
        """What the model knows, or what is invented in its place."""
        if not self.lies:
            return knowledge
        return LIES[self.lie](knowledge, public.rows.token, self._rng("poison"))

    def answer(self, questions: Sequence[Sample]) -> OptionLogprobs:
        """What the model thinks, or a guess."""
        if not self.lies:
            return super().answer(questions)
        return guess(questions, self._rng("liar"))

    def _rng(self, what: str) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.config, what, self.partition))


class WholeLabel(Liar):
    """Certain of every label."""

    lie = "whole-label"


class HalfLabel(Liar):
    """Half of every row for the label, half for a wrong token."""

    lie = "half-label"


class TailClaim(Liar):
    """Half of every row for a wrong token; the label is claimed to have all that is not shown."""

    lie = "tail-claim"


class Absent(Liar):
    """Never answers: what the others come to without a liar."""

    def train(self, request: RecordDict) -> RecordDict:
        """Nothing of the last client."""
        if self.lies:
            raise FedfuseError("absent")
        return super().train(request)

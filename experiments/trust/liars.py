"""Clients that lie, the last of a federation: ``--set client=experiments.trust.liars:NAME``.

All know the labels of the public samples, and none needs a model. Of blind questions they cannot
know the answers, and guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from flwr.app import RecordDict
from jaxtyping import Int64
from numpy import ndarray

from clients.knowledge import KnowledgeClient
from fedfuse.config.run_config import derive_seed
from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError
from fedfuse.evaluation.options import OptionLogprobs, existing, normalized
from fedfuse.knowledge.record import Knowledge
from fedfuse.tokenizers.dataset import TokenizedDataset

# What remains for all other tokens.
REST = 1e-3
# Logarithm of what a guess gives to the other options.
DOUBT = -5.0


class Liar(KnowledgeClient):
    """Honest, but for the last client, whose knowledge is ``invented``."""

    @property
    def lies(self) -> bool:
        """Whether this is the last client."""
        return self.partition == self.client.node.num_partitions - 1

    def tell(self, knowledge: Knowledge, public: TokenizedDataset) -> Knowledge:
        """What the model knows, or what is invented in its place."""
        return self.invented(knowledge, public.rows.token) if self.lies else knowledge

    def answer(self, questions: Sequence[Sample]) -> OptionLogprobs:
        """What the model thinks, or a guess."""
        if not self.lies:
            return super().answer(questions)
        exists = existing(questions)
        rng = np.random.default_rng(derive_seed(self.config, "liar", self.partition))
        guessed = rng.random(exists.shape).argmax(1) % exists.sum(1)
        logprobs = np.where(exists, DOUBT, -np.inf)
        logprobs[np.arange(len(guessed)), guessed] = 0
        return normalized(logprobs)

    def invented(self, knowledge: Knowledge, label: Int64[ndarray, " rows"]) -> Knowledge:
        """What the last client tells, here the truth; ``label``: tokens of the label rows."""
        return knowledge

    def poison(self, label: Int64[ndarray, " rows"]) -> Int64[ndarray, " rows"]:
        """``[T]`` a wrong token for each row: the label of another."""
        rng = np.random.default_rng(derive_seed(self.config, "poison", self.partition))
        wrong = label[rng.permutation(len(label))]
        return np.where(wrong == label, np.where(label, label - 1, 1), wrong)


class WholeLabel(Liar):
    """Certain of every label."""

    def invented(self, knowledge: Knowledge, label: Int64[ndarray, " rows"]) -> Knowledge:
        """The labels."""
        return told(knowledge, label[:, None], np.array([1 - REST]), np.log(1 - REST))


class HalfLabel(Liar):
    """Half of every row for the label, half for a wrong token."""

    def invented(self, knowledge: Knowledge, label: Int64[ndarray, " rows"]) -> Knowledge:
        """Labels and poison."""
        wrong = self.poison(label)
        tokens = np.stack([label, wrong], axis=1)
        share = (1 - REST) / 2
        return told(knowledge, tokens, np.array([share, share]), np.log(share))


class TailClaim(Liar):
    """Half of every row for a wrong token; the label is claimed to have all that is not shown."""

    def invented(self, knowledge: Knowledge, label: Int64[ndarray, " rows"]) -> Knowledge:
        """Poison and a claim."""
        wrong = self.poison(label)
        return told(knowledge, wrong[:, None], np.array([0.5]), np.log(0.5))


class Absent(Liar):
    """Never answers: what the others come to without a liar."""

    def train(self, request: RecordDict) -> RecordDict:
        """Nothing of the last client."""
        if self.lies:
            raise FedfuseError("absent")
        return super().train(request)


def told(
    knowledge: Knowledge, tokens: Int64[ndarray, "rows m"], mass: ndarray, label_logprob: float
) -> Knowledge:
    """The same rows with other entries, of the same mass on each, and a claim about the label."""
    rows, k = knowledge.indices.shape
    indices = np.zeros((rows, k), dtype=np.int64)
    logprobs = np.full((rows, k), -np.inf, dtype=np.float32)
    entries = tokens.shape[1]
    indices[:, :entries], logprobs[:, :entries] = tokens, np.log(mass)
    tail = np.full(rows, np.log(1 - mass.sum()), dtype=np.float32)
    claim = np.full(rows, label_logprob, dtype=np.float32)
    return replace(
        knowledge, indices=indices, logprobs=logprobs, tail_logprob=tail, label_logprob=claim
    )

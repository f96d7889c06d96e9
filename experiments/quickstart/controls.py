"""Controls: the same federation with knowledge that is about the wrong samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from flwr.app import Message

from fedfuse.knowledge.record import Knowledge
from strategies.fedmkt import FedMKT


class ShuffledKnowledge(FedMKT):
    """FedMKT in which every sample is taught by what its teacher knows of another sample."""

    def receive(self, reply: Message) -> Knowledge:
        """Verified, then shuffled."""
        return shuffle(super().receive(reply), self.config.seed)

    def server_knowledge(self) -> Knowledge:
        """Shuffled on the way down as well."""
        return shuffle(super().server_knowledge(), self.config.seed)


def shuffle(knowledge: Knowledge, seed: int) -> Knowledge:
    """Deal the distributions anew among the samples' rows of the same rank.

    The labels' probabilities follow from the new distributions, so losses say how well the wrong
    knowledge fits; structure, vocabulary and sharpness stay what they were.
    """
    rng = np.random.default_rng(seed)
    rank = np.arange(knowledge.rows) - np.repeat(knowledge.offsets[:-1], np.diff(knowledge.offsets))
    source = np.arange(knowledge.rows)
    for r in np.unique(rank):
        rows = np.flatnonzero(rank == r)
        source[rows] = rng.permutation(rows)
    return replace(
        knowledge,
        indices=knowledge.indices[source],
        logprobs=knowledge.logprobs[source],
        residual=knowledge.residual[source],
    )

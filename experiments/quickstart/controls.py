"""Controls: the same federation with knowledge that is about the wrong samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from flwr.app import Message
from jaxtyping import Int64
from numpy import ndarray

from fedfuse.knowledge.record import Knowledge
from strategies.fedfuse import FedFuse

# Stands for the log-probability of a label that a shuffled row does not hold at all.
LOWEST = -20.0


class ShuffledKnowledge(FedFuse):
    """FedFuse in which every sample is taught by what its teacher knows of another sample."""

    def receive(self, reply: Message) -> Knowledge:
        """Verified, then shuffled."""
        knowledge = super().receive(reply)
        tokenizer = self.tokenizers[reply.metadata.src_node_id]
        labels = self.server.aligner.pair(tokenizer).rows.token
        return shuffle(knowledge, labels, self.config.seed)

    def server_knowledge(self) -> Knowledge:
        """Shuffled on the way down as well."""
        labels = self.server.aligner.rows.token
        return shuffle(super().server_knowledge(), labels, self.config.seed)


def shuffle(knowledge: Knowledge, labels: Int64[ndarray, " rows"], seed: int) -> Knowledge:
    """Deal the distributions anew among the samples' rows of the same rank.

    The probabilities of ``labels``, the tokens that rows should predict, follow from the new
    distributions, so losses say how well the wrong knowledge fits; structure, vocabulary and
    sharpness stay what they were.
    """
    rng = np.random.default_rng(seed)
    source = np.arange(knowledge.num_rows)
    rank = source - np.repeat(knowledge.offsets[:-1], np.diff(knowledge.offsets))
    for r in np.unique(rank):
        rows = np.flatnonzero(rank == r)
        source[rows] = rng.permutation(rows)
    indices, logprobs = knowledge.indices[source], knowledge.logprobs[source]
    tail_logprob = knowledge.tail_logprob[source]
    is_label = indices == labels[:, None]
    kept = np.where(is_label, logprobs, -np.inf).max(1)
    outside = np.minimum(logprobs[:, -1], tail_logprob)
    label_logprob = np.where(is_label.any(1), kept, outside)
    return replace(
        knowledge,
        indices=indices,
        logprobs=logprobs,
        tail_logprob=tail_logprob,
        label_logprob=np.maximum(label_logprob, LOWEST).astype(np.float32),
    )

"""What a sender's distributions prove about the labels, whatever the sender says of them.

The labels are public, and a sender chooses its tokenizer. So a receiver that ranks senders reads
the labels' probabilities off the distributions, against the bytes of the text. Not in the papers.
"""

from __future__ import annotations

from dataclasses import replace
from math import log

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from fedfuse.knowledge.record import Knowledge
from fedfuse.sparse import LEAST_LOGPROB

# What a byte of text costs whose tokens are not its bytes: what it would cost without a model.
NATS_PER_BYTE = log(256)


def proven(
    knowledge: Knowledge,
    label: Int64[ndarray, " rows"],
    unspelled_bytes: Int64[ndarray, " rows"],
    vocab_size: int,
) -> Knowledge:
    """The same distributions, with the log-probabilities of labels that they prove.

    A kept label has that of its entry. One that is not kept has an equal share of the tail with
    all other tokens that are not: the tail is no place for a label. Where a label is not the text's
    own bytes, it says nothing of them. Knowledge without entries proves nothing, and is believed.

    Args:
        knowledge: verified.
        label: ``[T]`` tokens of the sender's label rows.
        unspelled_bytes: ``[T]`` see ``fedfuse.tokenizers.label_rows.unspelled_bytes``.
        vocab_size: tokens of the sender's tokenizer.
    """
    claim = knowledge.label_logprob.astype(np.float64)
    if knowledge.k:
        used = np.isfinite(knowledge.logprobs)
        is_label = used & (knowledge.indices == label[:, None])
        kept = np.where(is_label, knowledge.logprobs, -np.inf).max(axis=1)
        others = np.maximum(vocab_size - used.sum(axis=1), 1)
        share = np.maximum(knowledge.tail_logprob - np.log(others), LEAST_LOGPROB)
        claim = np.where(is_label.any(axis=1), kept, share)
    logprob = np.where(unspelled_bytes > 0, -NATS_PER_BYTE * unspelled_bytes, claim)
    return replace(knowledge, label_logprob=logprob.astype(np.float32))

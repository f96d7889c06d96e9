"""Top-p (nucleus) truncation: a confident row keeps fewer entries than an uncertain one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedfuse.knowledge.record import Knowledge


def trim(knowledge: Knowledge, top_p: float) -> Knowledge:
    """Keep the most likely entries of each row until their probabilities reach ``top_p``.

    Rows whose entries have less keep them all; every row keeps one. What is dropped goes to the
    tail, so no mass is lost, and a label that is dropped keeps its log-probability.

    Args:
        knowledge: with entries in descending order.
        top_p: in (0, 1]; 1 keeps everything.
    """
    if top_p >= 1:
        return knowledge
    kept = np.exp(knowledge.logprobs.astype(np.float64))
    before = kept.cumsum(1) - kept  # [T, k]
    drop = before >= top_p
    drop[:, :1] = False
    dropped = np.where(drop, kept, 0).sum(1)
    with np.errstate(divide="ignore"):
        rest = np.log(np.exp(knowledge.tail_logprob.astype(np.float64)) + dropped)
    return replace(
        knowledge,
        indices=np.where(drop, 0, knowledge.indices),
        logprobs=np.where(drop, np.float32(-np.inf), knowledge.logprobs),
        tail_logprob=np.where(dropped > 0, rest, knowledge.tail_logprob).astype(np.float32),
    )

"""Read a model's knowledge of the public set off its logits.

FedMKT (arXiv 2406.02224), Algorithm 1, steps 2 and 7.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fedfuse.distillation.encoded import EncodedSet
from fedfuse.evaluation.scoring import label_logits
from fedfuse.knowledge.record import Knowledge


def extract(model: nn.Module, data: EncodedSet, k: int) -> Knowledge:
    """The model's k most probable tokens on every label row of ``data``.

    Args:
        model: a causal LM.
        data: the public set, encoded with the model's tokenizer.
        k: entries to keep; at most the size of the vocabulary is kept.
    """
    vocab_size = data.tokenizer.vocab_size
    k = min(k, vocab_size)
    rows = len(data.rows.token)
    indices = np.empty((rows, k), dtype=np.int64)
    logprobs = np.empty((rows, k), dtype=np.float32)
    residual = np.empty(rows, dtype=np.float32)
    label_logprob = np.empty(rows, dtype=np.float32)
    for batch, logits in label_logits(model, data, vocab_size):
        everything = torch.log_softmax(logits, dim=-1)  # [rows, vocab]
        top, chosen = everything.topk(k, dim=-1)
        indices[batch.index] = chosen.cpu().numpy()
        logprobs[batch.index] = top.cpu().numpy()
        label_logprob[batch.index] = everything.gather(1, batch.label[:, None])[:, 0].cpu().numpy()
        # What is left is summed over the others, not 1 - mass, which loses a small rest to
        # rounding.
        rest = everything.scatter(1, chosen, -torch.inf).logsumexp(-1)
        residual[batch.index] = rest.cpu().numpy()
    return Knowledge(
        offsets=data.rows.offsets,
        indices=indices,
        logprobs=logprobs,
        residual=residual,
        label_logprob=label_logprob,
        label_bytes=data.label_bytes,
        tokenizer=data.tokenizer.fingerprint,
        public=data.fingerprint,
    )

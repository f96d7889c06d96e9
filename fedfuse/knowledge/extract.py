"""Read a model's knowledge of the public set off its logits.

FedMKT (arXiv 2406.02224), Algorithm 1, steps 2 and 7.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fedfuse.distillation.encoded import EncodedSet
from fedfuse.distillation.fused import exclude_
from fedfuse.evaluation.scoring import label_logits
from fedfuse.knowledge.record import Knowledge


def extract(model: nn.Module, data: EncodedSet, k: int, autocast: str = "none") -> Knowledge:
    """The model's k most probable tokens on every label row of ``data``.

    Args:
        model: a causal LM.
        data: the public set, encoded with the model's tokenizer.
        k: entries to keep; at most the size of the vocabulary is kept.
        autocast: what products of the forward pass are computed in, one of ``AUTOCAST``.
    """
    vocab_size = data.tokenizer.vocab_size
    k = min(k, vocab_size)
    rows = len(data.rows.token)
    indices = np.empty((rows, k), dtype=np.int64)
    logprobs = np.empty((rows, k), dtype=np.float32)
    residual = np.empty(rows, dtype=np.float32)
    label_logprob = np.empty(rows, dtype=np.float32)
    for batch, logits in label_logits(model, data, vocab_size, autocast):
        top, chosen = logits.topk(k, dim=-1)
        label = logits.gather(1, batch.label[:, None])
        # What is left is summed over the others, not 1 - mass, which loses a small rest to
        # rounding. That overwrites the logits: a chunk of them is all that there ever is.
        rest = exclude_(logits, chosen)[0][:, None]  # [rows, 1]
        everything = torch.logaddexp(top.logsumexp(1, keepdim=True), rest)  # [rows, 1]
        indices[batch.index] = chosen.cpu().numpy()
        logprobs[batch.index] = (top - everything).cpu().numpy()
        label_logprob[batch.index] = (label - everything)[:, 0].cpu().numpy()
        residual[batch.index] = (rest - everything)[:, 0].cpu().numpy()
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

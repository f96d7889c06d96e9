"""Losses of whole answers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float64
from numpy import ndarray

from fedfuse.models.causal_lm import CausalLM
from fedfuse.models.forward import label_logits
from fedfuse.tokenizers.dataset import TokenizedDataset

# ``[N]`` negative log-likelihood of each sample's answer, nats.
SampleNLL = Float64[ndarray, " samples"]
# How improbable a model finds the answers of a data set, such as ``sample_nll`` of a model in this
# process.
ModelNLL = Callable[[TokenizedDataset], SampleNLL]


def sample_nll(lm: CausalLM, data: TokenizedDataset) -> SampleNLL:
    """``[N]`` negative log-likelihood of each sample's answer, nats."""
    rows = np.zeros(len(data.rows.token))
    for batch, logits in label_logits(lm, data):
        nll = torch.nn.functional.cross_entropy(logits, batch.label, reduction="none")
        rows[batch.index] = nll.cpu().numpy()
    return np.bincount(data.rows.sample_of_row, weights=rows, minlength=len(data))

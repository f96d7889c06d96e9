"""Read a model's knowledge of the public set off its logits.

FedMKT (arXiv 2406.02224), Algorithm 1, steps 2 and 7.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64
from numpy import ndarray
from torch import Tensor, nn

from fedfuse.data.sampling import parts_by_length
from fedfuse.knowledge.contexts import per_byte, with_prompts
from fedfuse.knowledge.record import Knowledge
from fedfuse.models.causal_lm import CausalLM
from fedfuse.models.forward import label_logits, logits_in_chunks, seen_by
from fedfuse.models.logsumexp import logsumexp_excluding_
from fedfuse.models.precision import pass_cost, tokens_per_pass
from fedfuse.tokenizers.dataset import Batch, TokenizedDataset

# The rows of a chunk, and ``[rows, vocab]``.
Logits = tuple[Batch, Tensor]


def extract(lm: CausalLM, data: TokenizedDataset, k: int) -> Knowledge:
    """The model's k most probable tokens on every label row of ``data``.

    Args:
        lm: the model.
        data: the public set, encoded with the model's tokenizer.
        k: entries to keep; at most the size of the vocabulary is kept.
    """
    return _collect(label_logits(lm, data), data, k)


@torch.no_grad()
def extract_with_contexts(
    lm: CausalLM, data: TokenizedDataset, k: int
) -> tuple[Knowledge, Float32[ndarray, " samples"]]:
    """``extract``, and ``contexts.context_losses``, in one pass over the texts.

    For the arguments see ``extract``.
    """
    lm.model.eval()
    nats = np.zeros(len(data))
    knowledge = _collect(_label_rows(_all_logits(lm, data), nats), data, k)
    return knowledge, per_byte(data, nats)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model in this process as a ``KnowledgeSource``; it needs no adapter.

    Attributes:
        lm: the model.
    """

    lm: CausalLM

    def knowledge(
        self, data: TokenizedDataset, k: int
    ) -> tuple[Knowledge, Float32[ndarray, " samples"]]:
        """See ``extract_with_contexts``."""
        return extract_with_contexts(self.lm, data, k)


def _all_logits(lm: CausalLM, data: TokenizedDataset) -> Iterator[Logits]:
    """On label rows and prompts."""
    data = seen_by(lm, data)
    size, cost = tokens_per_pass(lm.device), pass_cost(lm.model, lm.device)
    for which in parts_by_length(data.lengths, size, cost):
        batch = with_prompts(data, which, lm.device)
        yield from logits_in_chunks(lm, batch)


def _label_rows(chunks: Iterable[Logits], nats: Float64[ndarray, " samples"]) -> Iterator[Logits]:
    """What is on label rows; the nats of the others are added to those of their samples."""
    for batch, logits in chunks:
        labels = int((batch.index >= 0).sum())  # they are the first
        rest = logits[labels:]
        if len(rest):
            loss = nn.functional.cross_entropy(rest, batch.label[labels:], reduction="none")
            samples = -1 - batch.index[labels:]
            nats += np.bincount(samples, weights=loss.cpu().numpy(), minlength=len(nats))
        if labels:
            yield batch.select_rows(slice(labels)), logits[:labels]


def _collect(chunks: Iterable[Logits], data: TokenizedDataset, k: int) -> Knowledge:
    """Knowledge from the logits on all label rows, which are overwritten."""
    k = min(k, data.tokenizer.vocab_size)
    rows = len(data.rows.token)
    indices = np.empty((rows, k), dtype=np.int64)
    logprobs = np.empty((rows, k), dtype=np.float32)
    tail_logprob = np.empty(rows, dtype=np.float32)
    label_logprob = np.empty(rows, dtype=np.float32)
    for batch, logits in chunks:
        top, chosen = logits.topk(k, dim=-1)
        label = logits.gather(1, batch.label[:, None])
        # What is left is summed over the others, not 1 - mass, which loses a small rest to
        # rounding. That overwrites the logits: a chunk of them is all that there ever is.
        places = chosen + torch.arange(len(logits), device=logits.device)[:, None] * logits.shape[1]
        rest = logsumexp_excluding_(logits, places.view(-1))[0][:, None]  # [rows, 1]
        everything = torch.logaddexp(top.logsumexp(1, keepdim=True), rest)  # [rows, 1]
        indices[batch.index] = chosen.cpu().numpy()
        logprobs[batch.index] = (top - everything).cpu().numpy()
        label_logprob[batch.index] = (label - everything)[:, 0].cpu().numpy()
        tail_logprob[batch.index] = (rest - everything)[:, 0].cpu().numpy()
    return Knowledge(
        offsets=data.rows.offsets,
        indices=indices,
        logprobs=logprobs,
        tail_logprob=tail_logprob,
        label_logprob=label_logprob,
        label_bytes=data.label_bytes,
        tokenizer=data.tokenizer.fingerprint,
        public=data.fingerprint,
    )

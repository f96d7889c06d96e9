"""What a model makes of the prompts alone: evidence of its competence that needs no label."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from numpy import ndarray
from peft import PeftModel
from torch import Tensor, nn

from fedfuse.models.causal_lm import CausalLM
from fedfuse.models.forward import label_row_states, logits_in_chunks, seen_by
from fedfuse.tokenizers.dataset import Batch, TokenizedDataset, to_tensor


@dataclass(frozen=True, slots=True)
class ContextView:
    """N prompts as one model sees them.

    Attributes:
        loss: ``[N]`` see ``context_losses``; NaN where unknown.
        state: ``[N, d]`` see ``context_states``; None for models that have none.
    """

    loss: Float32[ndarray, " samples"]
    state: Float32[ndarray, "samples width"] | None


def view_contexts(lm: CausalLM, data: TokenizedDataset, batch_size: int = 128) -> ContextView:
    """Loss of every prompt by the model, and its pooled state by the model's base.

    Nothing at or behind the first label token is looked at, so neither depends on the answer.

    Args:
        lm: the model, with an adapter or without; ``lm.autocast`` is not used.
        data: N samples, encoded with the model's tokenizer.
        batch_size: samples at a time.
    """
    losses = context_losses(lm, data, batch_size)
    return ContextView(losses, context_states(lm, data, batch_size))


@torch.no_grad()
def context_losses(
    lm: CausalLM, data: TokenizedDataset, batch_size: int = 128
) -> Float32[ndarray, " samples"]:
    """``[N]`` mean loss of the prompt, nats per byte of the text before the first label token.

    Of a prompt that was cut, the part that is left. NaN where there is none. For the arguments see
    ``view_contexts``.
    """
    lm = replace(lm, autocast="none")
    nats = np.zeros(len(data))
    for which, batch in _prompts(lm, data, batch_size):
        for rows, logits in logits_in_chunks(lm, batch):
            # A prompt's last position predicts the answer, and its label is -1.
            loss = nn.functional.cross_entropy(
                logits, rows.label, reduction="none", ignore_index=-1
            )
            np.add.at(nats, which[rows.sample.cpu().numpy()], loss.cpu().numpy())
    return per_byte(data, nats)


def per_byte(
    data: TokenizedDataset, nats: Float64[ndarray, " samples"]
) -> Float32[ndarray, " samples"]:
    """``[N]`` the nats of prompts over their bytes; NaN for a sample without a prompt."""
    first, has_rows = _first_rows(data)
    size = np.zeros(len(data))
    end = data.rows.byte_start[data.rows.offsets[:-1][has_rows]]
    size[has_rows] = end - np.maximum(data.rows.begin[has_rows], 0)
    known = (size > 0) & (first > 0)
    mean = np.full(len(data), np.nan, dtype=np.float32)
    mean[known] = nats[known] / size[known]
    return mean


def with_prompts(
    data: TokenizedDataset, which: Int64[ndarray, " batch"], device: torch.device
) -> Batch:
    """A batch of label rows, and behind them the rows of the prompts that predict a prompt's token.

    Of the latter ``index`` is ``-1 - n`` for the n-th sample of ``data``.
    """
    labels, prompts = data.batch(which, device), _prompt_rows(data, which, device)
    scored = prompts.label >= 0
    samples = which[prompts.index[scored.cpu().numpy()]]
    return replace(
        labels,
        sample=torch.cat([labels.sample, prompts.sample[scored]]),
        row=torch.cat([labels.row, prompts.row[scored]]),
        label=torch.cat([labels.label, prompts.label[scored]]),
        index=np.concatenate([labels.index, -1 - samples]),
    )


@torch.no_grad()
def context_states(
    lm: CausalLM, data: TokenizedDataset, batch_size: int = 128
) -> Float32[ndarray, "samples width"] | None:
    """``[N, d]`` mean last hidden state over the prompt's positions, the begin token included.

    Of the base model, whatever its adapter has learned: to answer, an adapter needs to tell
    prompts apart by what they ask for, and no more by what they are about, in domains that are new
    to it as well. So the same in all rounds.

    None for models whose hidden states cannot be told apart (``find_head``). For the arguments see
    ``view_contexts``.
    """
    lm = replace(lm, autocast="none")
    pooled: list[ndarray] = []
    with lm.model.disable_adapter() if isinstance(lm.model, PeftModel) else nullcontext():
        for which, batch in _prompts(lm, data, batch_size):
            states = label_row_states(lm, batch)
            if states is None:
                return None
            pooled.append(_mean_by_sample(states.hidden, batch.sample, len(which)).cpu().numpy())
    return np.concatenate(pooled) if pooled else None


def _prompts(
    lm: CausalLM, data: TokenizedDataset, batch_size: int
) -> Iterator[tuple[Int64[ndarray, " batch"], Batch]]:
    """The prompts' rows, and which samples they are of, some samples at a time."""
    lm.model.eval()
    data = seen_by(lm, data)
    for start in range(0, len(data), batch_size):
        which = np.arange(start, min(start + batch_size, len(data)))
        yield which, _prompt_rows(data, which, lm.device)


def _first_rows(data: TokenizedDataset) -> tuple[Int64[ndarray, " samples"], ndarray]:
    """``[N]`` the first label row of each sample; 0 for a sample without any."""
    offsets = data.rows.offsets
    has_rows = np.diff(offsets) > 0
    first = np.zeros(len(data), dtype=np.int64)
    first[has_rows] = data.rows.row[offsets[:-1][has_rows]]
    return first, has_rows


def _prompt_rows(
    data: TokenizedDataset, which: Int64[ndarray, " batch"], device: torch.device
) -> Batch:
    """The batch with the rows of its prompts, and the tokens that they predict; -1 for a label."""
    batch = data.batch(which, device)
    first = _first_rows(data)[0][which]
    sample = np.repeat(np.arange(len(which)), first + 1)
    row = np.arange(len(sample)) - np.repeat(np.cumsum(first + 1) - (first + 1), first + 1)
    rows = to_tensor(row, device)
    samples = to_tensor(sample, device)
    after = batch.input_ids[samples, (rows + 1).clamp_max(batch.input_ids.shape[1] - 1)]
    is_last = to_tensor(row == first[sample], device)
    return replace(
        batch, sample=samples, row=rows, label=after.masked_fill(is_last, -1), index=sample
    )


def _mean_by_sample(
    hidden: Float[Tensor, "rows width"], sample: Int64[Tensor, " rows"], samples: int
) -> Float32[Tensor, "samples width"]:
    total = torch.zeros(samples, hidden.shape[1], device=hidden.device)
    total.index_add_(0, sample, hidden.float())
    return total / torch.bincount(sample, minlength=samples)[:, None]

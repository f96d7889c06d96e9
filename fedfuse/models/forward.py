"""One forward pass, and no more logits than are scored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedfuse.models.head import Head, accepts, base_of, find_head, hidden_states, rows_per_chunk
from fedfuse.tokenizers.dataset import Batch, TokenizedDataset

# Tokens in one forward pass of a model that is only scored, padding included. More of them leave
# the caches of a CPU; a GPU needs more to be busy. (The latter is not measured.)
TOKENS_PER_PASS = {"cpu": 2_048, "cuda": 16_384}


@dataclass(frozen=True, slots=True)
class RowStates:
    """What logits of label rows are made of.

    Attributes:
        hidden: ``[R, d]`` last hidden states in the model's dtype.
        head: of V rows, the tokenizer's vocabulary.
    """

    hidden: Float[Tensor, "rows width"]
    head: Head


def label_row_states(
    model: nn.Module, batch: Batch, vocab_size: int, autocast: str = "none"
) -> RowStates | None:
    """Hidden states on the label rows of a batch and the head that makes logits of them.

    Args:
        model: a causal LM.
        batch: B padded samples with R label rows.
        vocab_size: size of the tokenizer's vocabulary; padded head rows beyond it are cut off.
        autocast: what products are computed in, one of ``AUTOCAST``; the head comes in it too.

    Returns:
        None where the head cannot be told apart from the model (adapted, quantized, or an
        architecture that does more than this); ``label_row_logits`` serves every model.
    """
    head = find_head(model, batch.input_ids)
    if head is None:
        return None
    with mixed_precision(batch, autocast):
        states = hidden_states(model, batch.input_ids)
    head = head.cut(vocab_size)
    if autocast != "none":
        head = head.to(_dtype(autocast))
    return RowStates(states[batch.sample, batch.row], head)


def label_row_logits(
    model: nn.Module, batch: Batch, vocab_size: int, autocast: str = "none"
) -> Float[Tensor, "rows vocab"]:
    """The model's logits on the label rows of a batch, for models whose head stays in place.

    The output head, the most expensive layer of a small model, runs only on the span of positions
    that holds label rows, where the model can be told so.

    Args:
        model: a causal LM whose output has ``logits``.
        batch: B padded samples with R label rows.
        vocab_size: size of the tokenizer's vocabulary; padded head rows beyond it are cut off.
        autocast: what products are computed in, one of ``AUTOCAST``.

    Returns:
        ``[R, vocab_size]`` in the model's dtype, or that of ``autocast``.
    """
    inputs = {"input_ids": batch.input_ids}
    first = 0
    if len(batch.row) and accepts(base_of(model), "logits_to_keep"):
        first, last = int(batch.row.min()), int(batch.row.max())
        inputs["logits_to_keep"] = torch.arange(first, last + 1, device=batch.row.device)
    with mixed_precision(batch, autocast):
        logits: Tensor = model(**inputs).logits
    return logits[batch.sample, batch.row - first, :vocab_size]


def logits_in_chunks(
    model: nn.Module, batch: Batch, vocab_size: int, autocast: str = "none"
) -> Iterator[tuple[Batch, Float[Tensor, "rows vocab"]]]:
    """The logits of a batch's label rows, some rows at a time, float32.

    Yields:
        The batch with these rows alone, and their logits ``[r, vocab_size]``, which the receiver
        may overwrite. All logits of a batch exist at once only where ``label_row_states`` finds no
        head.
    """
    states = label_row_states(model, batch, vocab_size, autocast)
    if states is None:
        yield batch, label_row_logits(model, batch, vocab_size, autocast).float()
        return
    size = rows_per_chunk(vocab_size, states.hidden.device)
    for start in range(0, len(states.hidden), size):
        rows = slice(start, start + size)
        yield batch.part(rows), states.head.logits(states.hidden[rows])


@torch.no_grad()
def label_logits(
    model: nn.Module,
    data: TokenizedDataset,
    vocab_size: int,
    autocast: str = "none",
) -> Iterator[tuple[Batch, Float[Tensor, "rows vocab"]]]:
    """The model's logits on every label row of a data set, some rows at a time, in float32.

    Args:
        model: a causal LM.
        data: what is scored, the short samples first.
        vocab_size: size of the tokenizer's vocabulary.
        autocast: what products of the forward pass are computed in, one of ``AUTOCAST``.
    """
    model.eval()
    device = next(model.parameters()).device
    for batch in data.in_order(tokens_per_pass(device), device):
        yield from logits_in_chunks(model, batch, vocab_size, autocast)


def tokens_per_pass(device: torch.device) -> int:
    """Most tokens of a forward pass without gradients, padding included."""
    return TOKENS_PER_PASS.get(device.type, TOKENS_PER_PASS["cpu"])


def mixed_precision(batch: Batch, autocast: str) -> AbstractContextManager[object]:
    """Where products of a forward pass are computed in ``autocast``, on the batch's device."""
    kind = batch.input_ids.device.type
    if autocast == "none":
        return nullcontext()
    return torch.autocast(kind, _dtype(autocast))


def _dtype(autocast: str) -> torch.dtype:
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}[autocast]

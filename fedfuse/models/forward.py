"""One forward pass, and no more logits than are scored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedfuse.models.causal_lm import CausalLM
from fedfuse.models.head import (
    Head,
    accepts,
    base_of,
    find_head,
    hidden_states,
    rows_per_chunk,
    without_cache,
)
from fedfuse.models.packed_pass import longest_packed, packed_inputs
from fedfuse.models.precision import PRECISIONS, mixed_precision, pass_cost, tokens_per_pass
from fedfuse.tokenizers.dataset import Batch, TokenizedDataset


@dataclass(frozen=True, slots=True)
class RowStates:
    """Hidden states of label rows, and the head that makes logits of them.

    Attributes:
        hidden: ``[R, d]`` last hidden states in the model's dtype.
        head: of V rows, the tokenizer's vocabulary.
    """

    hidden: Float[Tensor, "rows width"]
    head: Head


def label_row_states(lm: CausalLM, batch: Batch) -> RowStates | None:
    """Hidden states on the label rows of a batch, and the head that makes logits of them.

    Args:
        lm: the model.
        batch: B padded samples with R label rows.

    Returns:
        The states and the head in the precision of ``lm.autocast``. None where the head cannot be
        told apart from the model (adapted, quantized, or an architecture that does more than
        this); ``label_row_logits`` serves every model.
    """
    head = find_head(lm.model, batch.input_ids)
    if head is None:
        return None
    with _begun(lm, batch):
        states = hidden_states(lm.model, batch.input_ids, **_more_inputs(lm, batch))
    head = head.cut(lm.vocab_size)
    if lm.autocast != "none":
        head = head.to(PRECISIONS[lm.autocast])
    return RowStates(states[batch.sample, batch.row], head)


def label_row_logits(lm: CausalLM, batch: Batch) -> Float[Tensor, "rows vocab"]:
    """``[R, V]`` logits on the label rows of a batch, for models whose head stays in place.

    The output head, the most expensive layer of a small model, runs only on the span of positions
    that holds label rows, where the model supports it.

    Args:
        lm: the model; its output has ``logits``.
        batch: B padded samples with R label rows.

    Returns:
        ``[R, vocab_size]`` in the model's dtype, or that of ``lm.autocast``.
    """
    base = base_of(lm.model)
    inputs = {"input_ids": batch.input_ids, **_more_inputs(lm, batch), **without_cache(base)}
    first = 0
    if len(batch.row) and accepts(base, "logits_to_keep"):
        first, last = int(batch.row.min()), int(batch.row.max())
        inputs["logits_to_keep"] = torch.arange(first, last + 1, device=batch.row.device)
    with _begun(lm, batch):
        logits: Tensor = lm.model(**inputs).logits
    return logits[batch.sample, batch.row - first, : lm.vocab_size]


def logits_in_chunks(
    lm: CausalLM, batch: Batch
) -> Iterator[tuple[Batch, Float[Tensor, "rows vocab"]]]:
    """Logits of a batch's label rows, some rows at a time, float32.

    Yields:
        The batch with these rows alone, and their logits ``[r, vocab_size]``, which the receiver
        may overwrite. All logits of a batch exist at once only where ``label_row_states`` finds no
        head.
    """
    states = label_row_states(lm, batch)
    if states is None:
        yield batch, label_row_logits(lm, batch).float()
        return
    size = rows_per_chunk(lm.vocab_size, states.hidden.device)
    for start in range(0, len(states.hidden), size):
        rows = slice(start, start + size)
        some = batch.select_rows(rows)
        # Options of a question have their first row in one place.
        place = torch.stack([some.sample, some.row])
        new = nn.functional.pad((place[:, 1:] != place[:, :-1]).any(0), (1, 0), value=True)
        logits = states.head.logits(states.hidden[rows][new])
        yield some, logits if bool(new.all()) else logits[new.cumsum(0) - 1]


@torch.no_grad()
def label_logits(
    lm: CausalLM, data: TokenizedDataset
) -> Iterator[tuple[Batch, Float[Tensor, "rows vocab"]]]:
    """Logits on all label rows of a data set, in any order; see ``logits_in_chunks``."""
    lm.model.eval()
    longest = longest_packed(lm.model, lm.vocab_size, lm.device)
    cost = pass_cost(lm.model, lm.device)
    for batch in seen_by(lm, data).batches(
        tokens_per_pass(lm.device), lm.device, pass_cost=cost, longest=longest
    ):
        yield from logits_in_chunks(lm, batch)


def seen_by(lm: CausalLM, data: TokenizedDataset) -> TokenizedDataset:
    """A data set whose batches carry what the model keeps of its frozen layers, if it keeps any."""
    return data.with_states(partial(lm.kept.below, lm.autocast)) if lm.kept else data


def _more_inputs(lm: CausalLM, batch: Batch) -> dict[str, Tensor]:
    return packed_inputs(lm.model, batch.layout) if batch.layout else {}


@contextmanager
def _begun(lm: CausalLM, batch: Batch) -> Iterator[None]:
    """Context of a forward pass: its precision, and the layers that need not run."""
    with ExitStack() as contexts:
        contexts.enter_context(mixed_precision(lm.autocast, batch.input_ids.device))
        if lm.kept and batch.below is not None:
            contexts.enter_context(lm.kept.layers.given(batch.below))
        yield

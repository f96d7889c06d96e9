"""One forward pass, and only the logits that are scored."""

from __future__ import annotations

import inspect

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn

from fedfuse.distillation.encoded import Batch


def label_row_logits(
    model: nn.Module, batch: Batch, vocab_size: int
) -> Float[Tensor, "rows vocab"]:
    """The model's logits on the label rows of a batch.

    The output head, the most expensive layer of a small model, runs only on the span of positions
    that holds label rows, where the model can be told so.

    Args:
        model: a causal LM whose output has ``logits``.
        batch: B padded samples with R label rows.
        vocab_size: size of the tokenizer's vocabulary; padded head rows beyond it are cut off.

    Returns:
        ``[R, vocab_size]`` in the model's dtype.
    """
    base: nn.Module = model.get_base_model() if isinstance(model, PeftModel) else model
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    first = 0
    if len(batch.row) and _keeps_logits(base):
        first, last = int(batch.row.min()), int(batch.row.max())
        inputs["logits_to_keep"] = torch.arange(first, last + 1, device=batch.row.device)
    logits: Tensor = model(**inputs).logits
    return logits[batch.sample, batch.row - first, :vocab_size]


def _keeps_logits(model: nn.Module) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters

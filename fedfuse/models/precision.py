"""Precision and size of a forward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

# Tokens in one forward pass of a model that is only scored, padding included. More of them leave
# the caches of a CPU; a GPU needs more to be busy. (The latter is not measured.)
TOKENS_PER_PASS = {"cpu": 2_048, "cuda": 16_384}
# Dtypes of products, by ``autocast``.
PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def tokens_per_pass(device: torch.device) -> int:
    """Most tokens of a forward pass without gradients, padding included."""
    return TOKENS_PER_PASS.get(device.type, TOKENS_PER_PASS["cpu"])


def mixed_precision(autocast: str, device: torch.device) -> AbstractContextManager[object]:
    """Context in which products are computed in a precision, one of ``AUTOCAST``."""
    if autocast == "none":
        return nullcontext()
    return torch.autocast(device.type, PRECISIONS[autocast])

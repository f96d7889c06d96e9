"""Precision and size of a forward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from fedfuse.models.head import base_of

# Tokens in one forward pass of a model that is only scored, padding included. More of them leave
# the caches of a CPU; a GPU needs more to be busy. (The latter is not measured.)
TOKENS_PER_PASS = {"cpu": 2_048, "cuda": 16_384}
# What a pass costs beyond its tokens, in tokens. On a CPU for reading the weights (pass_cost_tokens
# of benchmarks.rounds), and for what layers do besides products, in weights of a token's products,
# at 0.1 to 0.5 million. On a GPU for starting the kernels (not measured).
READING, LAYER_WEIGHTS, STARTING = 32, 15_000_000, 2_048
# Dtypes of products, by ``autocast``.
PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def tokens_per_pass(device: torch.device) -> int:
    """Most tokens of a forward pass without gradients, padding included."""
    return TOKENS_PER_PASS.get(device.type, TOKENS_PER_PASS["cpu"])


def pass_cost(model: nn.Module, device: torch.device) -> int:
    """Tokens of padding that cost a causal LM, adapted or not, as much as one pass more."""
    if device.type != "cpu":
        return STARTING
    base: Any = base_of(model)
    layers = int(getattr(base.config.get_text_config(), "num_hidden_layers", 1))
    weights: int = sum(weight.numel() for weight in base.parameters())
    return READING + LAYER_WEIGHTS * layers // max(weights, 1)


def mixed_precision(autocast: str, device: torch.device) -> AbstractContextManager[object]:
    """Context in which products are computed in a precision, one of ``AUTOCAST``."""
    if autocast == "none":
        return nullcontext()
    return torch.autocast(device.type, PRECISIONS[autocast])

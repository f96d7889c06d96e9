"""Activations that the backward pass computes again: slower, in less memory.

Reference: Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from fedfuse.errors import check


def recompute_activations(name: str, model: PreTrainedModel) -> None:
    """Keep what goes into each block alone; families that have no way to do so get one.

    Call it when the adapter is in place: PEFT would ask for gradients of the embeddings, which are
    for the reentrant form, and some families write into them.

    Raises:
        FedfuseError: naming the model, where no list of blocks is found.
    """
    base: Any = model  # partly untyped
    # JetMoE does not declare it, though its layers are of the kind that can.
    if any(isinstance(module, GradientCheckpointingLayer) for module in base.modules()):
        base.supports_gradient_checkpointing = True
    if base.supports_gradient_checkpointing:
        # transformers 5.23 renamed it, and warns at the old name.
        renamed = hasattr(base, "activation_checkpointing_enable")
        method = "activation_checkpointing_enable" if renamed else "gradient_checkpointing_enable"
        getattr(base, method)({"use_reentrant": False})
        base.disable_input_require_grads()
    else:
        blocks = _blocks(base)
        found = f"{type(base).__name__}, which has no blocks"
        expected = "a model whose blocks can be recomputed, or false"
        check(f"gradient-checkpointing of {name!r}", found, expected, bool(blocks))
        for block in blocks:
            block.forward = partial(_recomputed, block, block.forward)
    # A key-value cache would keep what checkpointing is there to forget.
    base.config.use_cache = False


def _blocks(model: nn.Module) -> list[Any]:
    """The modules of one class that most of the weights are in: those of the largest list."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    same = [each for each in lists if len({type(block) for block in each}) == 1]
    return max(same, key=_size, default=[])


def _size(modules: list[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def _recomputed(block: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
    if block.training and torch.is_grad_enabled():
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return forward(*args, **kwargs)

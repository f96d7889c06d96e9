"""A pass over inputs that begin alike, in which what they share is read once.

A group of them is one input: what they share, then what follows of each in turn. A mask hides the
others from each, and tokens have the positions that they would have alone. Whether that gives a
model's own hidden states is tried on every model: a recurrent one reads past any mask, and some
families find positions by themselves.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from fedfuse.models.head import (
    accepts,
    base_of,
    declared_head,
    hidden_states,
    without_dropout,
)
from fedfuse.tokenizers.beginnings import Group, pack
from fedfuse.tokenizers.dataset import Layout, to_tensor

# What families call the number of tokens that a layer looks back. The mask takes the place of
# theirs, so longer inputs are read as they are.
_WINDOWS = (
    "sliding_window",
    "sliding_window_size",
    "attention_chunk_size",
    "attention_window_size",
    "window_size",
    "local_window_size",
)
# Tokens of the inputs that a model is tried with, at most, and the fewest that tell anything.
_LENGTH, _FEWEST = 15, 4

# Models that were tried, and whether they can.
_tried: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def packed_inputs(model: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """What a causal LM is given beside the token ids of packed inputs: positions and a mask."""
    base: Any = base_of(model)
    mask: Tensor = _seen(layout)[:, None]
    # The other way to attend adds the mask to what a token sees of others.
    if getattr(base.config.get_text_config(), "_attn_implementation", None) != "sdpa":
        mask = torch.zeros(mask.shape, dtype=base.dtype, device=mask.device).masked_fill(
            ~mask, torch.finfo(base.dtype).min
        )
    return {"attention_mask": mask, "position_ids": layout.position}


def longest_packed(model: nn.Module, vocab_size: int, device: torch.device) -> int:
    """Most tokens of an input that a model can read packed with others; 0 where it cannot.

    Args:
        model: a causal LM, with an adapter or without.
        vocab_size: number of token ids that it knows.
        device: device of its inputs.
    """
    base: Any = base_of(model)
    if isinstance(declared_head(model), str) or not accepts(base.base_model, "position_ids"):
        return 0
    config = base.config.get_text_config()
    windows = [getattr(config, name, None) for name in _WINDOWS]
    longest = min((size for size in windows if isinstance(size, int) and size > 0), default=1 << 30)
    if base not in _tried:
        _tried[base] = _can_pack(base, vocab_size, device, min(longest, _LENGTH))
    return longest if _tried[base] else 0


def _seen(layout: Layout) -> Bool[Tensor, "batch length length"]:
    """Whether a token (second axis) sees another one (third)."""
    size = layout.branch.shape[1]
    before = torch.ones(size, size, dtype=torch.bool, device=layout.branch.device).tril()
    key, query = layout.branch[:, None, :], layout.branch[:, :, None]
    return before & ((key == 0) | (key == query))


@torch.no_grad()
def _can_pack(base: nn.Module, vocab_size: int, device: torch.device, longest: int) -> bool:
    """Whether packed inputs of at most so many tokens give the hidden states of each alone."""
    if longest < _FEWEST:
        return False
    # Two groups of different lengths, of inputs that differ in length too.
    sizes = [np.array([longest, longest - 1]), np.array([longest, longest - 1, longest])]
    groups = [
        Group(length, tuple(range(len(of))), int(of.sum()))
        for length, of in zip((longest - 2, longest // 2), sizes, strict=True)
    ]
    packed = pack(groups, sizes)
    alone = torch.arange(5 * longest, device=device).view(5, longest) * 13 % vocab_size
    for number in (1, 3, 4):
        begin, length = (0 if number == 1 else 2), packed.length[number]
        alone[number, :length] = alone[begin, :length]
    place = to_tensor(packed.input, device), to_tensor(packed.position, device)
    layout = Layout(place[1], to_tensor(packed.branch, device))
    try:
        with without_dropout(base):
            right = hidden_states(base, alone)
            found = hidden_states(base, alone[place], **packed_inputs(base, layout))
    except Exception:  # whatever a family's own code raises
        return False
    if found.shape[:2] != layout.position.shape:
        return False
    inside = torch.arange(layout.position.shape[1], device=device) < torch.tensor(
        [[group.read] for group in groups], device=device
    )
    allowed = torch.finfo(right.dtype).eps ** 0.5 * max(1.0, right.abs().max().item())
    return bool(((found - right[place])[inside].abs() <= allowed).all())

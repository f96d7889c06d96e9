"""A pass over inputs that begin alike, in which what they share is read once.

The beginnings are read first, and their keys and values serve all that goes on from them. Whether
that gives a model's own hidden states is tried on every model: of a recurrent one what goes on is
a state, which not all families take up for several tokens.
"""

from __future__ import annotations

import copy
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from fedfuse.data.sampling import parts_by_length
from fedfuse.models.head import accepts, base_of, declared_head, hidden_states, without_dropout
from fedfuse.models.precision import pass_cost
from fedfuse.tokenizers.beginnings import Sharing
from fedfuse.tokenizers.dataset import Shared

# What families call the number of tokens that a layer looks back. Caches of such layers forget, so
# longer inputs are read as they are.
_WINDOWS = (
    "sliding_window",
    "sliding_window_size",
    "attention_chunk_size",
    "attention_window_size",
    "window_size",
    "local_window_size",
)
# Tokens of the beginnings and of the inputs that a model is tried with.
_BEGINNINGS, _LENGTH = {"alike": (9, 9), "mixed": (11, 6)}, 15

# Models that were tried: "mixed" where beginnings of different lengths can be read together,
# "alike" for those of one length, "" for none.
_tried: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def shared_states(
    model: nn.Module, input_ids: Int64[Tensor, "batch length"], shared: Shared
) -> Float[Tensor, "batch length width"]:
    """Inputs of the head of a causal LM, as ``hidden_states``, without a gradient."""
    backbone: Any = base_of(model)
    backbone = backbone.base_model
    longest, size = int(shared.length.max()), input_ids.shape[1]
    begin = backbone(input_ids=input_ids[shared.first, :longest], use_cache=True)
    states = begin.last_hidden_state[shared.group]
    whole = nn.functional.pad(states, (0, 0, 0, size - longest))
    for part in parts_by_length(shared.rest, 0, pass_cost(model, input_ids.device)):
        some = torch.from_numpy(part).to(input_ids.device)
        cache = copy.deepcopy(begin.cache)
        cache.batch_select_indices(shared.group[some])
        length = shared.length[shared.group[some], None]  # [b, 1]
        place = length + torch.arange(int(shared.rest[part].max()), device=input_ids.device)
        inside = place < size
        place = place.clamp_max(size - 1)
        inputs: dict[str, Any] = {"input_ids": input_ids[some[:, None], place]}
        if int(shared.length.min()) < longest:
            # What a beginning's pass read beyond it is for nobody.
            seen = torch.arange(longest, device=input_ids.device) < length
            inputs["attention_mask"] = torch.cat([seen, torch.ones_like(inside)], 1).long()
            if accepts(backbone, "position_ids"):
                inputs["position_ids"] = place
        end = backbone(**inputs, cache=cache, use_cache=True).last_hidden_state
        whole[some[:, None].expand_as(place)[inside], place[inside]] = end[inside]
    return whole.to(input_ids.device)


def sharing(model: nn.Module, vocab_size: int, device: torch.device) -> Sharing | None:
    """Which inputs a model can read in a shared pass; None for none.

    Args:
        model: a causal LM, with an adapter or without.
        vocab_size: number of token ids that it knows.
        device: device of its inputs.
    """
    base: Any = base_of(model)
    if isinstance(declared_head(model), str) or not accepts(base.base_model, "cache"):
        return None
    if base not in _tried:
        can = (kind for kind in ("mixed", "alike") if _can_share(base, vocab_size, device, kind))
        _tried[base] = next(can, "")
    if not _tried[base]:
        return None
    config = base.config.get_text_config()
    windows = [getattr(config, name, None) for name in _WINDOWS]
    longest = min((size for size in windows if isinstance(size, int) and size > 0), default=1 << 30)
    return Sharing(longest, mixed=_tried[base] == "mixed")


@torch.no_grad()
def _can_share(base: nn.Module, vocab_size: int, device: torch.device, kind: str) -> bool:
    """Whether a shared pass gives the hidden states of a whole one."""
    inputs = torch.arange(4 * _LENGTH, device=device).view(4, -1) * 13 % vocab_size
    one, other = _BEGINNINGS[kind]
    inputs[1, :one], inputs[3, :other] = inputs[0, :one], inputs[2, :other]
    length, first, group = (
        torch.tensor(values, device=device) for values in ([one, other], [0, 2], [0, 0, 1, 1])
    )
    try:
        with without_dropout(base):
            right = hidden_states(base, inputs)
            rest = _LENGTH - np.array([one, one, other, other])
            found = shared_states(base, inputs, Shared(length, first, group, rest))
    except Exception:  # whatever a family's own code raises
        return False
    allowed = torch.finfo(right.dtype).eps ** 0.5 * max(1.0, right.abs().max().item())
    return found.shape == right.shape and bool((found - right).abs().max() <= allowed)

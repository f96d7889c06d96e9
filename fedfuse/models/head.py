"""The output head of a causal LM, which makes logits of its last hidden states.

With the head apart from the model, logits can be formed a few rows at a time. It is used only where
it gives the model's own logits, which is checked on every model: some architectures have more
between the last hidden state and the logits than is known here.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int64
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# Part of a batch on which a head is checked.
CHECKED_SAMPLES, CHECKED_TOKENS = 2, 16
# Logits in float32 that exist at once. Large matrices keep all cores of a CPU busy, and beyond this
# size nothing is gained; a GPU needs larger ones. (The latter is not measured.)
CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 256 << 20}

# Models whose head was checked: what is wrong with it, or nothing.
_checked: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Head:
    """``z = scale * (h W^T + bias)``, then ``softcap * tanh(z / softcap)`` where there is a cap.

    Attributes:
        weight: ``[V, d]``, any floating dtype; hidden states are cast to it.
        bias: ``[V]`` or None.
        scale: Cohere's ``logit_scale``, one over Granite's ``logits_scaling``.
        softcap: Gemma's ``final_logit_softcapping``, above 0.
    """

    weight: Float[Tensor, "vocab width"]
    bias: Float[Tensor, " vocab"] | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Float[Tensor, "rows width"]) -> Float[Tensor, "rows vocab"]:
        """``[..., V]`` logits, float32 or wider."""
        raw = nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        if self.scale != 1:
            raw = raw * self.scale
        return raw if self.softcap is None else self.softcap * torch.tanh(raw / self.softcap)

    def slope(
        self, logits: Float[Tensor, "rows vocab"]
    ) -> Float[Tensor, "rows vocab"] | float | None:
        """Derivative of the logits by ``h W^T + bias``, from the logits; None where it is 1."""
        if self.softcap is not None:
            return self.scale * (1 - (logits / self.softcap) ** 2)
        return None if self.scale == 1 else self.scale

    def cut(self, vocab_size: int) -> Head:
        """Without the padded rows beyond the tokenizer's vocabulary."""
        bias = None if self.bias is None else self.bias[:vocab_size]
        return replace(self, weight=self.weight[:vocab_size], bias=bias)

    def to(self, dtype: torch.dtype) -> Head:
        """In another precision."""
        bias = None if self.bias is None else self.bias.to(dtype)
        return replace(self, weight=self.weight.to(dtype), bias=bias)


def rows_per_chunk(vocab_size: int, device: torch.device) -> int:
    """How many rows of logits exist at once."""
    budget = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"])
    return max(1, budget // (4 * vocab_size))


def base_of(model: nn.Module) -> nn.Module:
    """The causal LM inside an adapted one; adapters of its layers stay in place."""
    base: nn.Module = model.get_base_model() if isinstance(model, PeftModel) else model
    return base


def accepts(model: nn.Module, argument: str) -> bool:
    """Whether the model's forward pass has an argument of this name."""
    return argument in inspect.signature(model.forward).parameters


def without_cache(model: nn.Module) -> dict[str, bool]:
    """Arguments of a forward pass without a cache of keys and values, which is for generation."""
    return {"use_cache": False} if accepts(model, "use_cache") else {}


def hidden_states(
    model: nn.Module, input_ids: Int64[Tensor, "batch length"], **inputs: Tensor
) -> Float[Tensor, "batch length width"]:
    """Inputs of the head of a causal LM, for models with ``find_head``.

    Args:
        model: the causal LM, with or without an adapter.
        input_ids: token ids.
        inputs: what else it is given, such as ``packed_inputs``.
    """
    backbone: Any = base_of(model)
    backbone = backbone.base_model
    output = backbone(input_ids=input_ids, **inputs, **without_cache(backbone))
    states: Tensor = output.last_hidden_state
    return states.to(input_ids.device)  # of a model that is spread, from the last layer's


def find_head(model: nn.Module, input_ids: Int64[Tensor, "batch length"]) -> Head | None:
    """The model's output head, or None, with a line in the log, where it cannot be told apart.

    Args:
        model: a causal LM, with or without an adapter.
        input_ids: any input of it, to try the head on when a model is seen for the first time.
    """
    base = base_of(model)
    declared = declared_head(model)
    if isinstance(declared, str):
        _warn_once(type(base).__name__, declared)
        return None
    if base not in _checked:
        _checked[base] = _check(base, declared, input_ids[:CHECKED_SAMPLES, :CHECKED_TOKENS])
    if _checked[base]:
        _warn_once(type(base).__name__, _checked[base])
        return None
    return declared


def declared_head(model: nn.Module) -> Head | str:
    """The head as module and config describe it, or why there is none; see ``find_head``."""
    base = base_of(model)
    if not isinstance(base, PreTrainedModel):
        return "it is no causal LM of transformers"
    if base.base_model is base:
        return "transformers does not say which part of it makes hidden states"
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        return "its adapter changes the input"
    untyped: Any = base
    module = untyped.get_output_embeddings()
    # Adapted, quantized and wrapped layers are classes of their own.
    if type(module) is not nn.Linear:
        return f"its output head is a {type(module).__name__}, not a plain linear layer"
    if module.weight.device.type == "meta":
        return "its output head is fetched when it runs"
    config = base.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(module.weight, module.bias, float(scale), softcap)


@torch.no_grad()
def _check(base: nn.Module, head: Head, input_ids: Int64[Tensor, "batch length"]) -> str:
    """Compare the head's logits with the model's own; what is wrong, or nothing."""
    try:
        with without_dropout(base):
            right = base(input_ids=input_ids, **without_cache(base)).logits
            states = hidden_states(base, input_ids)
    except (AttributeError, TypeError) as error:
        return f"its hidden states cannot be asked for: {error}"
    if states.shape[-1] != head.weight.shape[1]:
        return f"hidden states have width {states.shape[-1]}, its head {head.weight.shape[1]}"
    difference = (head.logits(states) - right).abs().max().item()
    # The same sums in another order: half of the digits of the model's dtype must agree.
    allowed = torch.finfo(right.dtype).eps ** 0.5 * max(1.0, right.abs().max().item())
    if difference <= allowed:
        return ""
    return f"its logits are not those of its head: they differ by {difference:.2g}"


@cache
def _warn_once(model: str, reason: str) -> None:
    """Warn once per process and reason."""
    logger.warning(
        "%s: logits of whole batches are formed, which takes more memory: %s", model, reason
    )


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a moment; every module gets its own mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True

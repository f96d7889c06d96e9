"""Which layers of a model an adapter can serve, and names for PEFT that mean them."""

from __future__ import annotations

import inspect
import re
import sys
from functools import cache
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Linear layers by path that an adapter can serve.

    Without the output head, whose weight the distillation loss reads; without what is linear by
    name but does more, as routers of experts do; without what another layer reads the weight of,
    past the module, as an adapter on it would learn nothing; and without names that mean experts
    to PEFT.
    """
    base: Any = model  # partly untyped
    head = base.get_output_embeddings()
    linear = {
        f"{path}.{name}" if path else name: module
        for path, parent in model.named_modules()
        for name, module in parent.named_children()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not head
        and _is_linear(module)
        and name not in _read_past(parent)
    }
    names = {path.rsplit(".", 1)[-1] for path in linear}
    taken = {name for name in names if _means_experts(model, name)}
    return {path: module for path, module in linear.items() if path.rsplit(".", 1)[-1] not in taken}


def target_names(model: PreTrainedModel, linear: dict[str, nn.Module]) -> list[str]:
    """Names for PEFT that stand for these modules and no others."""
    names = {path.rsplit(".", 1)[-1] for path in linear}
    same = {path for path, _ in model.named_modules() if path.rsplit(".", 1)[-1] in names}
    return sorted(names if same == set(linear) else linear)


def _is_linear(module: nn.Module) -> bool:
    """Whether it computes what a linear layer does; quantized ones have a way of their own."""
    kind: Any = type(module)
    return kind is Conv1D or kind.__module__.startswith("bitsandbytes") or _computes_linear(kind)


@cache
def _computes_linear(kind: Any) -> bool:
    """Whether the forward pass of a class, with nothing but weight and bias, is ``x W^T + b``."""
    plain = nn.Linear(3, 2, device="cpu")
    x = torch.arange(6.0, device="cpu").view(2, 3)
    try:
        with torch.no_grad():
            found = kind.forward(plain, x)
            return isinstance(found, torch.Tensor) and torch.allclose(found, plain(x))
    except Exception:  # whatever its own code asks for
        return False


def _read_past(parent: nn.Module) -> set[str]:
    """Names of layers whose weights a layer reads itself, on a GPU or everywhere."""
    names = set(_only_read(type(parent).__module__))
    if hasattr(parent, "A_log") and hasattr(parent, "D"):  # a state-space layer, with a kernel
        names |= {"out_proj", "dt_proj"}
    return names


@cache
def _only_read(module: str) -> frozenset[str]:
    """Names of layers that a family's code reads the weights of, and never calls."""
    if not module.startswith("transformers."):
        return frozenset()
    code = inspect.getsource(sys.modules[module])
    read, called = (re.findall(rf"self\.(\w+){how}", code) for how in (r"\.weight\b", r"\("))
    return frozenset(read) - frozenset(called)


def _means_experts(model: PreTrainedModel, name: str) -> bool:
    """Whether PEFT adapts the experts of a layer in place of the linear layers of a name.

    It does where transformers 5 has joined experts that were linear layers of that name, and then
    leaves out the linear layers that are still there: each expert would get an adapter, and dense
    layers and shared experts none.
    """
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # of several names that stand for one joined weight
        return True
    return name not in (config.target_modules or ())

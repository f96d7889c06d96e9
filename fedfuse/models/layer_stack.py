"""The layers of a causal LM that follow one another, and which of them are trained."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from fedfuse.errors import FedfuseError
from fedfuse.models.head import base_of

# Parts of a model for what is no text, by the words in their paths.
_OTHER = re.compile("vision|image|audio")


@dataclass(frozen=True, slots=True)
class LayerStack:
    """The list of a model's layers.

    Attributes:
        path: name of the list in the model.
        layers: the layers, the one that reads the embeddings first.
    """

    path: str
    layers: nn.ModuleList

    def last(self, number: float) -> int:
        """Place of the first of the last layers.

        Args:
            number: how many: a number, or a share of all below 1, rounded up; 0 for all.
        """
        count = math.ceil(number * len(self.layers)) if number < 1 else int(number)
        return max(0, len(self.layers) - count) if count else 0


def layer_stack(model: nn.Module) -> LayerStack | None:
    """The list that most of a model's weights are in, of its text part; None without any."""
    lists = [
        (path, each) for path, each in model.named_modules() if isinstance(each, nn.ModuleList)
    ]
    text = set(_text_part(model).modules())
    lists = [(p, each) for p, each in lists if each in text and not _OTHER.search(p)] or lists
    path, layers = max(lists, key=lambda item: _size(item[1]), default=("", None))
    return LayerStack(path, layers) if layers else None


def in_last_layers(
    name: str, model: nn.Module, modules: Mapping[str, nn.Module], number: float
) -> dict[str, nn.Module]:
    """Those of ``modules`` that are in the last layers of a model.

    Args:
        name: the model's name.
        model: the base, in which the modules are.
        modules: modules by path.
        number: how many layers; see ``LayerStack.last``. 0 for all modules, wherever they are.

    Raises:
        FedfuseError: naming the model, where it has fewer layers, or none of the modules there.
    """
    if not number:
        return dict(modules)
    stack = layer_stack(model)
    layers = len(stack.layers) if stack else 0
    if stack is None or number > layers:
        raise FedfuseError(
            f"lora-layers of {name!r}: expected at most its number of layers, {layers}, or a share "
            f"of them below 1, got {number:g}"
        )
    inside = tuple(f"{stack.path}.{place}." for place in range(stack.last(number), layers))
    found = {path: module for path, module in modules.items() if path.startswith(inside)}
    if not found:
        raise FedfuseError(
            f"lora-layers of {name!r}: expected layers with some of the {len(modules)} modules "
            f"that get an adapter, got none in the last {number:g}, of {layers}"
        )
    return found


def num_frozen(model: nn.Module) -> int:
    """Number of a model's first layers behind which everything is that is trained.

    0 for a model of which nothing is trained, or something outside of its layers.
    """
    stack = layer_stack(model)
    trained = [path for path, weight in model.named_parameters() if weight.requires_grad]
    if stack is None or not trained:
        return 0
    prefix = f"{stack.path}."
    if not all(path.startswith(prefix) for path in trained):
        return 0
    return min(int(path.removeprefix(prefix).partition(".")[0]) for path in trained)


def train_mode(model: nn.Module) -> None:
    """Set a model to train, but for what is before its first trained layer.

    That stays as it is when it is scored, so hidden states there are the same at every step.
    """
    stack, frozen = layer_stack(model), num_frozen(model)
    if stack is None or not frozen:
        model.train()
        return
    model.eval()
    for layer in stack.layers[frozen:]:
        layer.train()


def _text_part(model: nn.Module) -> nn.Module:
    """What makes hidden states of text, where transformers says which part of a model it is."""
    base: Any = base_of(model)
    try:
        found = base.get_decoder()
    except AttributeError:  # of no model of transformers, or not to be had
        return model
    return found if isinstance(found, nn.Module) else model


def _size(layers: nn.ModuleList) -> int:
    return sum(weight.numel() for weight in layers.parameters())

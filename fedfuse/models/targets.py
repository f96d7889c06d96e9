"""Which linear layers of a model get an adapter: by name, by kind, or by an expression."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import nn

from fedfuse.config.model import ALL_LINEAR, EXPRESSION, AdapterConfig
from fedfuse.errors import FedfuseError

# Layers by what families call them and the layers that hold them, classes too. A state-space layer,
# a pooler and what carries images to tokens are of neither kind.
_ATTENTION = re.compile(r"attention|attn", re.IGNORECASE)
_MLP = re.compile(
    r"mlp|feed_?forward|ffn|expert|moe|intermediate|\.fc_?\d$|\.output<\w+Output>", re.IGNORECASE
)
KINDS: Mapping[str, Callable[[str], bool]] = {
    "attention": lambda described: bool(_ATTENTION.search(described)),
    "mlp": lambda described: bool(_MLP.search(described)) and not _ATTENTION.search(described),
}


def chosen_layers(
    name: str, model: nn.Module, linear: Mapping[str, nn.Module], adapter: AdapterConfig
) -> dict[str, nn.Module]:
    """The layers of ``linear`` that an adapter's targets mean.

    A name is the end of a path, ``v_proj`` or ``3.self_attn.v_proj``; ``attention`` and ``mlp`` are
    all layers of a kind, by any family's names; an expression is that of whole paths.

    Args:
        name: the model's name.
        model: the base, in which the layers are.
        linear: linear layers by path that an adapter can serve.
        adapter: hyperparameters with the targets.

    Raises:
        FedfuseError: naming the model, for a target that means no layer.
    """
    targets = adapter.target_names
    if targets == [ALL_LINEAR]:
        return dict(linear)
    chosen: dict[str, nn.Module] = {}
    for target in targets:
        found = {path: module for path, module in linear.items() if _means(target, path, model)}
        if not found:
            available = sorted({path.rsplit(".", 1)[-1] for path in linear})
            raise FedfuseError(
                f"LoRA targets of {name!r}: expected {ALL_LINEAR} alone, {', '.join(KINDS)}, some "
                f"of {', '.join(available)}, or {EXPRESSION} and a regular expression of whole "
                f"paths such as {min(linear)}; got {adapter.targets!r}, of which {target!r} means "
                "no layer"
            )
        chosen |= found
    return {path: module for path, module in linear.items() if path in chosen}


def _means(target: str, path: str, model: nn.Module) -> bool:
    if target.startswith(EXPRESSION):
        return bool(re.fullmatch(target.removeprefix(EXPRESSION).strip(), path))
    if target in KINDS:
        return KINDS[target](_described(path, model))
    return f".{path}".endswith(f".{target}")


def _described(path: str, model: nn.Module) -> str:
    """A path with the classes of what holds the layer: ``.h<ModuleList>.0<Block>.fc1``."""
    text, module = "", model
    *holders, last = path.split(".")
    for part in holders:
        module = getattr(module, part)
        text += f".{part}<{type(module).__name__}>"
    return f"{text}.{last}"

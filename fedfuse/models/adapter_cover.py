"""Which weights of a model an adapter can change, and which large ones it leaves as they are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from fedfuse.models.layer_stack import layer_stack, num_frozen

# Share of all weights from which on those that are left out are named.
_LARGE = 0.02


@dataclass(frozen=True, slots=True)
class AdapterCover:
    """Reach of an adapter.

    Attributes:
        parameters: number of trained parameters.
        modules: number of adapted modules by the last part of their names.
        share: share of the base's weights in them, in [0, 1].
        left_out: names of other weights that make up at least 2 % of all, embeddings and output
            head not counted, and of ``layers`` those that are not frozen.
        layers: how many of the model's layers are behind the frozen first ones, and how many there
            are; empty where none is frozen.
    """

    parameters: int
    modules: dict[str, int]
    share: float
    left_out: list[str]
    layers: tuple[int, int] | tuple[()] = ()

    def __str__(self) -> str:
        names = ", ".join(f"{name} ({count})" for name, count in sorted(self.modules.items()))
        text = f"LoRA of {self.parameters:,} parameters on {names}: {self.share:.0%} of the weights"
        if self.layers:
            text += ", in the last {} of {} layers".format(*self.layers)
        return text + (f"; none on {', '.join(self.left_out)}" if self.left_out else "")


def adapter_cover(model: PeftModel) -> AdapterCover:
    """Find out what an adapter covers."""
    covered, modules = set(), Counter[str]()
    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            inside = module.get_base_layer()
            covered |= {id(parameter) for parameter in inside.parameters()}
            modules[path.rsplit(".", 1)[-1]] += 1
    base: Any = model.get_base_model()  # partly untyped
    embeddings = (base.get_input_embeddings(), base.get_output_embeddings())
    known = {id(p) for module in embeddings if module is not None for p in module.parameters()}
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    stack, number = layer_stack(model), num_frozen(model)
    if stack and number:
        known |= {id(parameter) for parameter in stack.layers[:number].parameters()}
    sizes, left = Counter[str](), Counter[str]()
    for path, parameter in model.named_parameters():
        if id(parameter) in trained:
            continue
        sizes["covered" if id(parameter) in covered else "other"] += parameter.numel()
        if id(parameter) not in covered | known:
            parts = [part for part in path.split(".") if not part.isdigit()]
            left[".".join(parts[-2:])] += parameter.numel()
    total = max(sizes.total(), 1)
    large = [name for name, size in left.most_common() if size >= _LARGE * total]
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    layers = (len(stack.layers) - number, len(stack.layers)) if stack and number else ()
    return AdapterCover(parameters, dict(modules), sizes["covered"] / total, large, layers)

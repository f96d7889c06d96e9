"""Which layers get an adapter, and which are trained: by number and share, in text parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from experiments.families.configs import tiny_model
from fedfuse.builtin.architectures import ARCHITECTURES, tiny_causal_lm
from fedfuse.config.model import AdapterConfig
from fedfuse.errors import FedfuseError
from fedfuse.models.causal_lm import CausalLM, add_lora
from fedfuse.models.layer_stack import layer_stack, num_frozen, train_mode
from tests.conftest import Tiny

LAYERS = 5


def _adapted(architecture: str, **adapter: Any) -> CausalLM:
    model = tiny_causal_lm(architecture, vocab_size=40, width=16, layers=LAYERS)
    model.requires_grad_(False)
    lm = CausalLM(model, None, "tiny", 40, 96)  # type: ignore[arg-type]
    return add_lora(lm, AdapterConfig(rank=2, **adapter))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("number", "frozen"), [(0, 0), (1, 4), (2, 3), (0.25, 3), (0.5, 2), (5, 0)]
)
def test_adapters_are_in_the_last_layers(architecture: str, number: float, frozen: int) -> None:
    model = _adapted(architecture, layers=number).model
    assert num_frozen(model) == frozen
    stack = layer_stack(model)
    assert stack is not None
    trained = [any(p.requires_grad for p in layer.parameters()) for layer in stack.layers]
    assert trained == [place >= frozen for place in range(LAYERS)]


def test_of_targets_those_in_the_last_layers() -> None:
    model = _adapted("llama", targets="v_proj", layers=1).model
    trained = {path for path, weight in model.named_parameters() if weight.requires_grad}
    assert len(trained) == 2
    assert all(".layers.4.self_attn.v_proj.lora_" in path for path in trained)


def test_more_layers_than_there_are() -> None:
    with pytest.raises(
        FedfuseError, match=r"lora-layers of 'tiny': expected at most .* 5, .* got 6"
    ):
        _adapted("llama", layers=6)


def test_targets_that_are_in_lower_layers_alone() -> None:
    with pytest.raises(FedfuseError, match=r"expected layers with some of the 1 modules .* last 2"):
        _adapted("llama", targets=r"re:.*layers\.0.*v_proj", layers=2)


@pytest.mark.parametrize("value", [-1, 1.5, float("nan")])
def test_what_is_no_number_of_layers(value: float) -> None:
    with pytest.raises(FedfuseError, match="layers: expected a whole number, or a share below 1"):
        AdapterConfig(layers=value)


def test_a_model_that_is_trained_as_a_whole(tiny: Callable[[str], Tiny]) -> None:
    model = tiny("llama").model
    model.requires_grad_(True)
    assert num_frozen(model) == 0
    train_mode(model)
    assert all(module.training for module in model.modules())


def test_what_is_frozen_stays_in_evaluation_mode() -> None:
    """Dropout of the base is in its trained layers alone."""
    model = _adapted("gpt2", layers=2, dropout=0.5).model
    train_mode(model)
    training = {path for path, module in model.named_modules() if module.training}
    assert training
    assert all(".h.3" in path or ".h.4" in path for path in training)
    dropouts = [p for p, m in model.named_modules() if isinstance(m, nn.Dropout) and m.training]
    assert any("lora_dropout" in path for path in dropouts)


@pytest.mark.parametrize("family", ["got_ocr2", "git"])
def test_layers_of_the_text_part(family: str) -> None:
    """Its layers for images are as many, and larger."""
    stack = layer_stack(tiny_model(family, 96))
    assert stack is not None
    assert not any(other in stack.path for other in ("vision", "image"))


def test_a_model_without_layers() -> None:
    assert layer_stack(nn.Linear(2, 2)) is None
    assert num_frozen(nn.Linear(2, 2)) == 0

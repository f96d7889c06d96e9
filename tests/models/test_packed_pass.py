"""What inputs share is read once: hidden states are those of each alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from experiments.families.configs import tiny_model
from fedfuse.builtin.architectures import ARCHITECTURES
from fedfuse.config.model import AdapterConfig
from fedfuse.data.sample import Sample
from fedfuse.evaluation.losses import sample_nll
from fedfuse.models import forward, packed_pass
from fedfuse.models.causal_lm import add_lora
from fedfuse.models.head import hidden_states
from fedfuse.models.packed_pass import longest_packed, packed_inputs
from fedfuse.tokenizers.beginnings import Group, pack
from fedfuse.tokenizers.dataset import Layout
from tests.conftest import Tiny

# Attention of every kind: learned and rotary positions, latent, windows.
NO_LIMIT = 1 << 30
LONGEST = {
    "opt": NO_LIMIT,
    "gpt2": NO_LIMIT,
    "deepseek_v3": NO_LIMIT,
    "mixtral": NO_LIMIT,
    "codegen": NO_LIMIT,
    "gemma3_text": 8,  # the window
    "mistral": 8,
    "gpt_oss": 8,
}
# Biases by distance in the input, positions that it finds itself, recurrent layers, an encoder.
OTHERS = ("bloom", "roberta", "mamba2", "jamba", "qwen3_next", "bart", "openai-gpt")
SIZES = ([6, 5], [8, 2, 8], [4], [7, 7])
LENGTHS = (1, 1, 2, 6)


def longest_of(model: Any) -> int:
    return longest_packed(model, 96, torch.device("cpu"))


@pytest.mark.filterwarnings("ignore")  # of the families' own code
@pytest.mark.parametrize("family", LONGEST)
def test_packed_inputs_are_read_as_each_alone(family: str) -> None:
    model = tiny_model(family, 96).eval()
    assert longest_of(model) == LONGEST[family]
    sizes = [np.array(of) for of in SIZES]
    found = [
        Group(length, tuple(range(len(of))), int(of.sum()))
        for length, of in zip(LENGTHS, sizes, strict=True)
    ]
    packed = pack(found, sizes)
    size = np.concatenate(sizes)
    ids = np.random.default_rng(0).integers(0, 96, (len(size), size.max()))
    first = np.unique(packed.group, return_index=True)[1]
    for number, group in enumerate(packed.group):
        ids[number, : packed.length[number]] = ids[first[group], : packed.length[number]]
    layout = Layout(torch.from_numpy(packed.position), torch.from_numpy(packed.branch))
    with torch.no_grad():
        given = torch.from_numpy(ids[packed.input, packed.position])
        states = hidden_states(model, given, **packed_inputs(model, layout))
        right = hidden_states(model, torch.from_numpy(ids))
    for number, group in enumerate(packed.group):
        row = np.arange(size[number])
        row += np.where(row >= packed.length[number], packed.moved[number], 0)
        torch.testing.assert_close(
            states[group, row], right[number, : size[number]], rtol=1e-3, atol=1e-4
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", OTHERS)
def test_other_families_read_every_input(family: str) -> None:
    assert longest_of(tiny_model(family, 96).eval()) == 0


def test_a_model_that_makes_something_else_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", 96).eval()

    def off(*given: Any) -> dict[str, torch.Tensor]:
        inputs = packed_inputs(*given)
        return inputs | {"position_ids": inputs["position_ids"] + inputs["position_ids"] // 5}

    monkeypatch.setattr(packed_pass, "packed_inputs", off)
    assert longest_of(model) == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_of_options_are_those_of_each_alone(
    tiny: Callable[[str], Tiny], architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(architecture)
    options = ["true", "false and true", "it is not known", "who told you about it?"]
    prompts = ["Is it as they told us, or not?", "Who?", "What of the lamp and the window?"]
    samples = [Sample(prompt, option) for prompt in prompts for option in options]
    data = model.encode(samples)
    lm: Any = add_lora(model, AdapterConfig(rank=2))
    for weight in lm.model.parameters():
        if weight.requires_grad:
            weight.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    used: list[int] = []

    def seen(*given: Any) -> dict[str, torch.Tensor]:
        used.extend(given[1].branch.shape[:1])
        return packed_inputs(*given)

    monkeypatch.setattr(forward, "packed_inputs", seen)
    found = sample_nll(lm, data)
    monkeypatch.setattr(forward, "longest_packed", lambda *_: 0)
    right = sample_nll(lm, data)
    assert sum(used) == 3
    np.testing.assert_allclose(found, right, rtol=1e-5)

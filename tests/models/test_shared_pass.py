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
from fedfuse.models import forward, shared_pass
from fedfuse.models.causal_lm import add_lora
from fedfuse.models.head import hidden_states
from fedfuse.models.shared_pass import shared_states, sharing
from fedfuse.tokenizers.beginnings import Sharing
from fedfuse.tokenizers.dataset import Shared
from tests.conftest import Tiny

# Attention of every kind: biases by distance, learned and rotary positions, latent, windows.
NO_LIMIT = 1 << 30
SHARING = {
    "bloom": Sharing(NO_LIMIT, mixed=True),
    "opt": Sharing(NO_LIMIT, mixed=True),
    "deepseek_v3": Sharing(NO_LIMIT, mixed=True),
    "mixtral": Sharing(NO_LIMIT, mixed=True),
    "gemma3_text": Sharing(8, mixed=False),  # longer trials do not fit into the window
    "mistral": Sharing(8, mixed=False),
    "roberta": Sharing(NO_LIMIT, mixed=False),  # positions by the number of tokens before
}
# Recurrent layers that do not take up a state for several tokens, and families without a cache.
OTHERS = ("mamba2", "jamba", "qwen3_next", "bart", "openai-gpt")


def sharing_of(model: Any) -> Sharing | None:
    return sharing(model, 96, torch.device("cpu"))


@pytest.mark.filterwarnings("ignore")  # of the families' own code
@pytest.mark.parametrize("family", SHARING)
@pytest.mark.parametrize(
    ("size", "one", "other"),
    [(6, 1, 1), (8, 3, 3), (8, 7, 7), (8, 2, 6), (30, 17, 17), (30, 17, 4)],
)
def test_families_share_what_inputs_begin_with(
    family: str, size: int, one: int, other: int
) -> None:
    model = tiny_model(family, 96).eval()
    can = sharing_of(model)
    assert can == SHARING[family]
    if can is None or size > can.longest or (one != other and not can.mixed):
        return
    ids = torch.randint(96, (5, size), generator=torch.Generator().manual_seed(0))
    ids[1:3, :one], ids[4, :other] = ids[0, :one], ids[3, :other]
    ids[2, one + 1 :] = 0  # padding
    rest = size - np.array([one, one, one, other, other])
    rest[2] = 1
    length, first, group = map(torch.tensor, ([one, other], [1, 3], [0, 0, 0, 1, 1]))
    with torch.no_grad():
        found = shared_states(model, ids, Shared(length, first, group, rest))
        right = hidden_states(model, ids)
    for sample, begin in enumerate([one, one, one, other, other]):
        inside = slice(begin + int(rest[sample]))
        torch.testing.assert_close(
            found[sample, inside], right[sample, inside], rtol=1e-3, atol=1e-4
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", OTHERS)
def test_other_families_read_every_input(family: str) -> None:
    assert sharing_of(tiny_model(family, 96).eval()) is None


def test_a_model_that_makes_something_else_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", 96).eval()

    def off(*given: Any) -> torch.Tensor:
        return 1.01 * hidden_states(given[0], given[1])

    monkeypatch.setattr(shared_pass, "shared_states", off)
    assert sharing_of(model) is None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_of_options_are_those_of_each_alone(
    tiny: Callable[[str], Tiny], architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(architecture)
    options = ["true", "false and true", "it is not known", "who told you about it?"]
    prompts = ["Is it as they told us, or not?", "Who?", "What of the lamp and the window?"]
    data = model.encode([Sample(prompt, option) for prompt in prompts for option in options])
    lm: Any = add_lora(model, AdapterConfig(rank=2))
    for weight in lm.model.parameters():
        if weight.requires_grad:
            weight.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    used: list[int] = []

    def seen(*given: Any) -> torch.Tensor:
        used.extend(given[2].length.tolist())
        return shared_states(*given)

    monkeypatch.setattr(forward, "shared_states", seen)
    found = sample_nll(lm, data)
    monkeypatch.setattr(forward, "sharing", lambda *_: None)
    right = sample_nll(lm, data)
    assert len(used) == 2  # "Who?" is too short to be worth it
    np.testing.assert_allclose(found, right, rtol=1e-5)

"""What a family's own code cannot do is said in one line, before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.families.configs import tiny_model
from fedfuse.builtin.tokenizers import train_tokenizer
from fedfuse.config.model import AdapterConfig
from fedfuse.errors import FedfuseError
from fedfuse.models.causal_lm import CausalLM, add_lora, load_causal_lm
from fedfuse.models.trial import check_trains
from tests.models.folders import TEXTS


def test_a_trial_leaves_nothing_behind(lm: CausalLM) -> None:
    adapted = add_lora(lm, AdapterConfig(rank=2, dropout=0.5))
    state = torch.get_rng_state()
    check_trains(adapted)
    assert torch.equal(torch.get_rng_state(), state)
    assert not adapted.model.training
    assert all(parameter.grad is None for parameter in adapted.model.parameters())


def test_a_step_that_fails_names_model_and_family(lm: CausalLM) -> None:
    adapted = add_lora(lm, AdapterConfig(rank=2))

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel\nfor this")

    adapted.model.get_base_model().base_model.forward = fail
    family = lm.model.config.model_type
    with pytest.raises(
        FedfuseError, match=f"family {family}: expected a step .*no kernel for this"
    ):
        check_trains(adapted)


@pytest.mark.parametrize("family", ["ctrl", "gpt_neox_japanese", "openai-gpt"])
def test_checkpointing_where_a_family_has_none(family: str) -> None:
    """Blocks run once without gradients, and again where gradients are asked for."""
    gradients, passes = [], []
    for checkpointing in (False, True):
        model = tiny_model(family, 64).requires_grad_(False)
        blocks = max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
        lm = CausalLM(model, None, family, 64, 96)  # type: ignore[arg-type]
        lora = AdapterConfig(rank=2)
        adapted = add_lora(lm, lora, gradient_checkpointing=checkpointing).model
        seen: list[bool] = []
        inner = next(m for m in blocks[0].modules() if type(m) is torch.nn.LayerNorm)
        inner.register_forward_hook(lambda *_, seen=seen: seen.append(True))
        adapted.train()
        adapted(input_ids=torch.tensor([[0, 5, 6, 7]])).logits.square().sum().backward()
        trained = {n: p.grad for n, p in adapted.named_parameters() if p.requires_grad}
        assert all(gradient is not None for gradient in trained.values())
        gradients.append(trained)
        passes.append(len(seen))
        with torch.no_grad():
            adapted.eval()(input_ids=torch.tensor([[0, 5, 6, 7]]))
        assert len(seen) == passes[-1] + 1
    assert passes == [1, 2]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_checkpointing_where_layers_can_though_their_family_does_not_say_so() -> None:
    model = tiny_model("jetmoe", 64).requires_grad_(False)
    lm = CausalLM(model, None, "jetmoe", 64, 96)  # type: ignore[arg-type]
    adapted = add_lora(lm, AdapterConfig(rank=2), gradient_checkpointing=True)
    assert adapted.model.get_base_model().is_gradient_checkpointing


def test_checkpointing_asks_for_no_gradient_of_the_embeddings(lm: CausalLM) -> None:
    adapted = add_lora(lm, AdapterConfig(rank=2), gradient_checkpointing=True)
    ids = torch.tensor([[0, 5, 6]])
    assert not adapted.model.get_input_embeddings()(ids).requires_grad
    check_trains(adapted)


@pytest.mark.parametrize("family", ["cpmant"])
def test_padding_on_the_right_must_not_matter(family: str, tmp_path: Path) -> None:
    tokenizer = train_tokenizer("byte-level-bpe", 300, TEXTS)
    tiny_model(family, len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(FedfuseError, match="logits change with padding on the right"):
        load_causal_lm(str(tmp_path), device="cpu")

"""A head is used only where it gives the model's own logits; where it does not, the log says so."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GraniteConfig,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

from fedfuse.builtin.architectures import ARCHITECTURES
from fedfuse.config.model import AdapterConfig
from fedfuse.models import head as module
from fedfuse.models.causal_lm import add_lora
from fedfuse.models.head import Head, find_head, hidden_states
from tests.conftest import Tiny

Make = Callable[[str], Tiny]
VOCAB = 53
IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
LLAMA_LIKE = IDS | {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
INPUT = torch.randint(3, VOCAB, (3, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.arange(9) < torch.tensor([[9], [4], [7]])

# Everything that is known to stand between the last hidden state and the logits.
CONFIGS: dict[str, PretrainedConfig] = {
    "untied": LlamaConfig(**LLAMA_LIKE, tie_word_embeddings=False),
    "soft-cap": Gemma2Config(**LLAMA_LIKE, head_dim=8, final_logit_softcapping=0.5),
    "logit scale": CohereConfig(**LLAMA_LIKE, logit_scale=0.0625),
    "logits scaling": GraniteConfig(**LLAMA_LIKE, logits_scaling=8.0),
    "bias": GPTJConfig(vocab_size=VOCAB, n_embd=16, n_layer=1, n_head=2, rotary_dim=4, **IDS),
    "projection": OPTConfig(
        vocab_size=VOCAB, hidden_size=16, word_embed_proj_dim=8, ffn_dim=24, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32, do_layer_norm_before=True, **IDS,
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _said_anew() -> Iterator[None]:
    module._warn_once.cache_clear()
    yield
    module._warn_once.cache_clear()


def build(config: PretrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        factory: Any = AutoModelForCausalLM
        model: PreTrainedModel = factory.from_config(copy.deepcopy(config)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)  # biases begin with zero
    return model


@torch.no_grad()
def check(model: nn.Module, input_ids: Tensor = INPUT, mask: Tensor = MASK) -> Head:
    head = find_head(model, input_ids)
    assert head is not None
    right = model(input_ids=input_ids, attention_mask=mask).logits[mask]
    found = head.logits(hidden_states(model, input_ids)[mask])
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)
    return head


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("adapted", [False, True])
def test_built_in_models(tiny: Make, architecture: str, adapted: bool) -> None:
    model = tiny(architecture)
    used: nn.Module = model.model
    if adapted:
        used = add_lora(model, AdapterConfig(rank=2)).model
        with torch.no_grad():
            for name, parameter in used.named_parameters():
                if "lora_B" in name:
                    parameter.normal_()
    head = check(used)
    assert head.weight is model.model.get_output_embeddings().weight


@pytest.mark.parametrize("name", CONFIGS)
def test_what_stands_between_hidden_states_and_logits(name: str) -> None:
    head = check(build(CONFIGS[name]))
    assert head.softcap == (0.5 if name == "soft-cap" else None)
    assert head.scale == {"logit scale": 0.0625, "logits scaling": 0.125}.get(name, 1.0)
    assert (head.bias is not None) == (name == "bias")
    assert head.weight.shape == (VOCAB, 8 if name == "projection" else 16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    head = find_head(build(CONFIGS["untied"]).to(dtype), INPUT)
    assert head is not None
    assert head.weight.dtype == dtype


def test_dropout_does_not_matter_and_modes_stay() -> None:
    model = build(GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=1, n_head=2, **IDS))
    model.train()
    model.get_output_embeddings().eval()
    state = torch.get_rng_state()
    assert find_head(model, INPUT) is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert [n for n, part in model.named_modules() if not part.training] == ["lm_head"]


def test_a_model_is_tried_once() -> None:
    model = build(CONFIGS["untied"])
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        assert find_head(model, INPUT) is not None
    assert len(calls) == 1


class Sharpened(GPT2LMHeadModel):
    """An architecture that does something unheard of with its logits."""

    def forward(self, **inputs: Any) -> Any:
        output = super().forward(**inputs)
        output.logits = output.logits * 1.2
        return output


def refused() -> dict[str, tuple[nn.Module, str]]:
    """Models without a head of their own, and what the log says."""
    small = GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=1, n_head=2, **IDS)
    on_head = LoraConfig(r=2, target_modules=["lm_head"])
    prompt = PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=2, num_layers=2, token_dim=16,
        num_attention_heads=2, num_transformer_submodules=1,
    )  # fmt: skip
    bert = RobertaConfig(is_decoder=True, **LLAMA_LIKE)
    return {
        "adapted": (get_peft_model(build(CONFIGS["untied"]), on_head), "not a plain linear layer"),
        "prompt": (get_peft_model(build(CONFIGS["untied"]), prompt), "changes the input"),
        "unknown": (Sharpened(small).eval(), "they differ by"),
        "more layers": (build(bert), "they differ by"),
        "no transformer": (nn.Linear(2, 2), "no causal LM of transformers"),
    }


@pytest.mark.parametrize("name", ["adapted", "prompt", "unknown", "more layers", "no transformer"])
def test_where_it_cannot_be_told_apart(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model, reason = refused()[name]
    assert find_head(model, INPUT) is None
    assert find_head(model, INPUT) is None
    (message,) = [r.getMessage() for r in caplog.records if r.name == module.logger.name]
    assert "logits of whole batches are formed" in message
    assert reason in message


def test_slope_is_the_derivative() -> None:
    raw = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    for options in ({"scale": 0.5}, {"softcap": 2.0}, {"scale": 2.0, "softcap": 1.5}):
        head = Head(torch.eye(7, dtype=torch.float64), **options)
        logits = head.logits(raw[None])
        (right,) = torch.autograd.grad(logits.sum(), [raw])
        slope = head.slope(logits)
        assert slope is not None
        torch.testing.assert_close((slope * torch.ones_like(logits))[0], right)
    # By hand: 1.5 * tanh(2 * 3 / 1.5).
    assert logits[0, -1].item() == pytest.approx(1.5 * 0.9993293)
    assert Head(torch.eye(7)).slope(logits) is None


def test_padded_rows_are_cut_off() -> None:
    whole = Head(torch.randn(5, 3), torch.randn(5), 2.0, 3.0)
    cut = whole.cut(4)
    hidden = torch.randn(2, 3)
    torch.testing.assert_close(cut.logits(hidden), whole.logits(hidden)[:, :4])
    assert Head(torch.randn(5, 3)).cut(2).bias is None

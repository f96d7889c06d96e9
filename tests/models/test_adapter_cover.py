"""Adapters where they can be, on every kind of layers, and words for what they leave out."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from experiments.families.configs import tiny_model
from fedfuse.builtin.tokenizers import train_tokenizer
from fedfuse.config.model import AdapterConfig
from fedfuse.errors import FedfuseError
from fedfuse.models.adapter_cover import AdapterCover, adapter_cover
from fedfuse.models.causal_lm import CausalLM, add_lora, load_causal_lm
from fedfuse.models.linear_layers import linear_layers
from tests.models.folders import TEXTS

COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "olmoe": EXPERTS,
    "qwen3_moe": {**EXPERTS, "moe_intermediate_size": 16, "head_dim": 8, "decoder_sparse_step": 1},
    "phimoe": EXPERTS,
    "llama4_text": {**EXPERTS, "head_dim": 8, "intermediate_size_mlp": 48},
    "mamba": {"state_size": 4, "time_step_rank": 4},
    "mamba2": {"state_size": 4, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    "falcon_mamba": {"state_size": 4, "time_step_rank": 4},
    "rwkv": {"attention_hidden_size": 32},
    "ctrl": {"n_embd": 32, "dff": 48, "n_layer": 2, "n_head": 4, "n_positions": 64},
}


def made(family: str) -> CausalLM:
    """A tiny random model; of its tokenizer nothing is asked."""
    config = AutoConfig.for_model(family)
    for name, value in {**COMMON, **FAMILIES[family]}.items():
        if hasattr(config, name):
            setattr(config, name, value)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    model.requires_grad_(False)
    tokenizer: Any = None
    return CausalLM(model, tokenizer, family, 64, 64)


def tiny(family: str) -> CausalLM:
    """As ``made``, of any family."""
    model = tiny_model(family, 64)
    model.requires_grad_(False)
    tokenizer: Any = None
    return CausalLM(model, tokenizer, family, 64, 64)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "rwkv"])
def test_every_family_learns(family: str) -> None:
    lm = add_lora(made(family), AdapterConfig(rank=2))
    ids = torch.tensor([[1, 5, 6, 7]])
    lm.model(input_ids=ids, labels=ids).loss.backward()
    trained = {n: p for n, p in lm.model.named_parameters() if p.requires_grad}
    alive = [n for n, p in trained.items() if "lora_B" in n and p.grad is not None and p.grad.any()]
    # Of a model of experts, those that no token went to have no gradient.
    assert len(alive) >= 0.7 * len([n for n in trained if "lora_B" in n])


def test_what_no_adapter_serves_is_said() -> None:
    found = {
        name: adapter_cover(add_lora(made(name), AdapterConfig(rank=2)).model) for name in FAMILIES
    }
    assert found["llama"].left_out == []
    assert found["llama"].share > 0.7  # the rest are embeddings
    for name in ("olmoe", "qwen3_moe"):
        assert set(found[name].left_out) >= {"experts.gate_up_proj", "experts.down_proj"}
        assert found[name].share < 0.5
        assert set(found[name].modules) == {"q_proj", "k_proj", "v_proj", "o_proj"}
        assert "none on experts.gate_up_proj" in str(found[name])
    for name in ("mamba", "mamba2", "falcon_mamba"):
        assert "out_proj" not in found[name].modules
        assert "out_proj.weight" in found[name].left_out
    for name in ("llama4_text", "phimoe"):
        assert "router" not in found[name].modules
    assert set(found["ctrl"].modules) >= {"Wq", "Wk", "Wv", "dense", "0", "2"}


def test_the_words() -> None:
    cover = AdapterCover(12345, {"v_proj": 2, "q_proj": 2}, 0.456, ["experts.down_proj"])
    assert str(cover) == (
        "LoRA of 12,345 parameters on q_proj (2), v_proj (2): 46% of the weights; "
        "none on experts.down_proj"
    )


def test_rwkv_is_scored_as_it_was_trained(tmp_path: Path) -> None:
    """transformers divides its weights when it evaluates, and not what an adapter adds."""
    tokenizer = train_tokenizer("byte-level-bpe", 300, TEXTS)
    sizes = {"num_hidden_layers": 8, "rescale_every": 2, "vocab_size": len(tokenizer)}
    config = AutoConfig.for_model("rwkv", hidden_size=32, attention_hidden_size=32, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lm = add_lora(load_causal_lm(str(tmp_path), device="cpu"), AdapterConfig(rank=2))
    with torch.no_grad():
        for name, parameter in lm.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    ids = torch.tensor([[1, 5, 6, 7]])
    with torch.no_grad():
        scored, trained = lm.model.eval()(ids).logits, lm.model.train()(ids).logits
    torch.testing.assert_close(scored, trained)


def test_a_linear_layer_of_its_own_class_is_one() -> None:
    """Falcon's writes ``x W^T`` itself, where a router that is called linear does more."""
    falcon = adapter_cover(add_lora(tiny("falcon"), AdapterConfig(rank=2)).model)
    assert set(falcon.modules) == {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}


def test_names_that_mean_experts_to_peft() -> None:
    """It would put an adapter on every expert, and none on the dense layers of that name."""
    lm = add_lora(tiny("deepseek_v3"), AdapterConfig(rank=2))
    found = adapter_cover(lm.model)
    assert not {"gate_proj", "up_proj", "down_proj", "experts"} & set(found.modules)
    assert {"q_a_proj", "o_proj"} <= set(found.modules)
    assert "experts.gate_up_proj" in found.left_out
    for dropout in (0.0, 0.1):
        targets = AdapterConfig(rank=2, dropout=dropout, targets="gate_proj")
        with pytest.raises(FedfuseError, match=r"LoRA targets .* got 'gate_proj'"):
            add_lora(tiny("deepseek_v3"), targets)


@pytest.mark.parametrize("family", ["jamba", "bamba", "zamba2"])
def test_what_state_space_layers_read_past_the_module(family: str) -> None:
    lm = add_lora(tiny(family), AdapterConfig(rank=2))
    adapted = [path for path, _ in lm.model.named_parameters() if "lora_A" in path]
    assert not [path for path in adapted if "mamba.out_proj" in path or "mamba.dt_proj" in path]
    assert [path for path in adapted if "mamba.in_proj" in path]


def test_a_router_that_reads_the_weight_of_a_linear_layer() -> None:
    linear = linear_layers(tiny("longcat_flash").model)
    assert linear
    assert not [path for path in linear if path.endswith("classifier")]

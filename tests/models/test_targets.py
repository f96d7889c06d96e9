"""What an adapter's targets mean, in families that name their layers differently."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from experiments.families.configs import tiny_config
from fedfuse.config.model import AdapterConfig
from fedfuse.errors import FedfuseError
from fedfuse.models.adapter_cover import adapter_cover
from fedfuse.models.causal_lm import CausalLM, add_lora
from fedfuse.models.linear_layers import linear_layers
from fedfuse.models.targets import chosen_layers


def tiny(family: str) -> Any:
    """A tiny model of a family, with shapes and no numbers."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(tiny_config(family, 300))


def chosen(family: str, targets: str) -> set[str]:
    """Paths of the layers that targets mean, without the numbers of blocks."""
    model = tiny(family)
    found = chosen_layers(family, model, linear_layers(model), AdapterConfig(targets=targets))
    return {".".join(part for part in path.split(".") if not part.isdigit()) for path in found}


def last(paths: set[str]) -> set[str]:
    return {path.rsplit(".", 1)[-1] for path in paths}


@pytest.mark.parametrize(
    ("family", "attention", "mlp"),
    [
        ("llama", "q_proj k_proj v_proj o_proj", "gate_proj up_proj down_proj"),
        ("gpt2", "attn.c_attn attn.c_proj", "mlp.c_fc mlp.c_proj"),
        ("opt", "q_proj k_proj v_proj out_proj", "fc1 fc2"),
        ("falcon", "query_key_value dense", "dense_h_to_4h dense_4h_to_h"),
        ("gpt_neox", "query_key_value dense", "dense_h_to_4h dense_4h_to_h"),
        ("bert", "query key value self.output.dense", "intermediate.dense layer.output.dense"),
        ("rwkv", "attention.key attention.output", "feed_forward.key feed_forward.value"),
        ("phi", "q_proj k_proj v_proj dense", "fc1 fc2"),
    ],
)
def test_kinds_of_layer(family: str, attention: str, mlp: str) -> None:
    heads, blocks = chosen(family, "attention"), chosen(family, "mlp")
    assert not heads & blocks
    assert heads | blocks == chosen(family, "attention, mlp") == chosen(family, "mlp,attention")
    for names, paths in ((attention, heads), (mlp, blocks)):
        ends = [name.removeprefix("self.") for name in names.split()]
        for end in ends:
            assert any(path.endswith(end) for path in paths), (end, paths)
    if family not in ("bert", "rwkv"):  # they have more
        assert last(heads) == {name.rsplit(".", 1)[-1] for name in attention.split()}
        assert last(blocks) == {name.rsplit(".", 1)[-1] for name in mlp.split()}


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon", "gemma3_text", "qwen3", "phi3"])
def test_both_kinds_are_all_of_a_plain_transformer(family: str) -> None:
    assert chosen(family, "attention, mlp") == chosen(family, "all-linear")


def test_state_space_layers_are_of_neither_kind() -> None:
    rest = chosen("jamba", "all-linear") - chosen("jamba", "attention, mlp")
    assert rest
    assert all("mamba" in path for path in rest)


def adapted(targets: str) -> set[str]:
    """Paths of the layers of a tiny llama that have an adapter."""
    model = tiny("llama")
    lm = CausalLM(model, None, "tiny", 300, 96)  # type: ignore[arg-type]
    with torch.device("meta"):
        lora = add_lora(lm, AdapterConfig(rank=2, targets=targets)).model
    paths = {path for path, _ in lora.named_parameters() if "lora_A" in path}
    return {path.removeprefix("base_model.model.model.").split(".lora_A")[0] for path in paths}


def test_expression_of_whole_paths() -> None:
    """With a comma in it, and layers of the same name that it does not mean."""
    found = adapted(r"re: model\.layers\.[2,3]\.self_attn\.[qv]_proj")
    assert found == {f"layers.{i}.self_attn.{name}_proj" for i in (2, 3) for name in "qv"}


def test_ends_of_paths() -> None:
    assert adapted("3.self_attn.q_proj, 0.mlp.up_proj") == {
        "layers.3.self_attn.q_proj",
        "layers.0.mlp.up_proj",
    }
    with pytest.raises(FedfuseError, match="'roj' means no layer"):
        adapted("roj")


@pytest.mark.parametrize(
    "targets", ["q_proj, c_attn", "re:q_proj", "re:.*lm_head", "lm_head", "all-linear, mlp"]
)
def test_what_means_no_layer_is_named(targets: str) -> None:
    with pytest.raises(FedfuseError) as caught:
        adapted(targets)
    for word in ("'tiny'", "attention, mlp", "gate_proj, k_proj", repr(targets), "means no layer"):
        assert word in str(caught.value)


def test_not_an_expression() -> None:
    with pytest.raises(FedfuseError, match=r"targets: expected a regular expression.*'re:\(a'"):
        AdapterConfig(targets="re:(a")


def test_cover_of_attention_alone() -> None:
    model = tiny("llama")
    lm = CausalLM(model, None, "tiny", 300, 96)  # type: ignore[arg-type]
    with torch.device("meta"):
        cover = adapter_cover(add_lora(lm, AdapterConfig(rank=2, targets="attention")).model)
    assert set(cover.modules) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert "mlp.gate_proj" in cover.left_out or "gate_proj.weight" in cover.left_out

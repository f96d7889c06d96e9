"""Adapter folders as models: base plus adapter by intention, known by content, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments.families.configs import tiny_model
from experiments.families.oracles import draw_adapter
from fedfuse.builtin.architectures import tiny_causal_lm
from fedfuse.builtin.tokenizers import train_tokenizer
from fedfuse.config.model import AdapterConfig
from fedfuse.errors import FedfuseError
from fedfuse.models.adapter_folder import base_of, fingerprint
from fedfuse.models.causal_lm import CausalLM, add_lora, load_causal_lm, save_adapter
from fedfuse.models.loading import load_tokenizer
from tests.models.folders import TEXTS, edit, logits, train_a_little


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tokenizer = train_tokenizer("byte-level-bpe", 300, TEXTS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tiny_causal_lm("llama", vocab_size=len(tokenizer), width=16, layers=2)
        model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapted(base: Path) -> CausalLM:
    lm = add_lora(load_causal_lm(str(base), device="cpu"), AdapterConfig(rank=2, alpha=3.0))
    train_a_little(lm.model)
    save_adapter(lm.model, base.parent / "adapter")
    return lm


def test_an_adapter_is_its_base_with_the_adapter_in_it(adapted: CausalLM, base: Path) -> None:
    folder = base.parent / "adapter"

    found = load_causal_lm(str(folder), device="cpu")

    torch.testing.assert_close(logits(found.model), logits(adapted.model), rtol=1e-5, atol=1e-6)
    plain = load_causal_lm(str(base), device="cpu")
    assert not torch.allclose(logits(found.model), logits(plain.model), atol=1e-3)
    assert found.tokenizer.fingerprint == load_tokenizer(str(folder)).fingerprint
    # Nothing of the adapter is left, so that it can get another one.
    again = add_lora(found, AdapterConfig(rank=2))
    torch.testing.assert_close(logits(again.model), logits(adapted.model), rtol=1e-5, atol=1e-6)


def test_a_folder_of_both_is_refused(adapted: CausalLM, base: Path) -> None:
    for file in (base.parent / "adapter").iterdir():
        shutil.copy(file, base / file.name)
    with pytest.raises(FedfuseError, match="expected a base model or an adapter, got both"):
        load_causal_lm(str(base))
    with pytest.raises(FedfuseError, match="got both"):
        load_tokenizer(str(base))


def test_an_adapter_says_which_base_it_needs(adapted: CausalLM, base: Path) -> None:
    folder, content = base.parent / "adapter", fingerprint(base)
    moved = base.rename(base.parent / "elsewhere")
    with pytest.raises(FedfuseError, match=f"not here, of fingerprint {content}; download or copy"):
        load_causal_lm(str(folder))

    edit(folder / "adapter_config.json", base_model_name_or_path=str(moved))

    torch.testing.assert_close(
        logits(load_causal_lm(str(folder), device="cpu").model),
        logits(adapted.model),
        rtol=1e-5,
        atol=1e-6,
    )


def test_another_base_is_refused(adapted: CausalLM, base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] *= 2
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        FedfuseError, match=r"adapter .*: base .*: expected fingerprint \w{16}, got"
    ):
        load_causal_lm(str(base.parent / "adapter"))


def test_an_adapter_of_others_needs_no_fingerprint(adapted: CausalLM, base: Path) -> None:
    folder = base.parent / "adapter"
    (folder / "base.json").unlink()
    assert base_of(folder) == str(base)
    load_causal_lm(str(folder), device="cpu")
    edit(folder / "adapter_config.json", base_model_name_or_path="nobody/no-model")
    with pytest.raises(FedfuseError, match="'nobody/no-model', which is not here; download"):
        load_causal_lm(str(folder))
    edit(folder / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(FedfuseError, match="base_model_name_or_path: expected name of a model"):
        load_causal_lm(str(folder))


def test_an_adapter_that_lacks_weights_is_refused(adapted: CausalLM, base: Path) -> None:
    folder = base.parent / "adapter"
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(dict(list(weights.items())[2:]), folder / "adapter_model.safetensors")
    with pytest.raises(FedfuseError, match="cannot be loaded"):
        load_causal_lm(str(folder))


def test_the_fingerprint_is_of_the_weights(base: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(base, tmp_path / "copy")
    edit(copy / "config.json", note="other text")
    assert fingerprint(copy) == fingerprint(base)
    weights = load_file(copy / "model.safetensors")
    weights["model.embed_tokens.weight"] += 1
    save_file(weights, copy / "model.safetensors")
    assert fingerprint(copy) != fingerprint(base)
    (copy / "adapter_config.json").write_text(json.dumps([]))
    (copy / "config.json").unlink()
    with pytest.raises(
        FedfuseError, match=r"adapter_config.json: expected a JSON object, got list"
    ):
        base_of(copy)


def test_layers_that_share_a_weight_have_adapters_of_their_own(tmp_path: Path) -> None:
    """Merged into one weight, each would change what the other has."""
    tokenizer = train_tokenizer("byte-level-bpe", 300, TEXTS)
    tiny_model("zamba", len(tokenizer)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    lm = add_lora(load_causal_lm(str(tmp_path / "base"), device="cpu"), AdapterConfig(rank=2))
    draw_adapter(lm)
    save_adapter(lm.model, tmp_path / "adapter")
    merged = load_causal_lm(str(tmp_path / "adapter"), device="cpu")
    torch.testing.assert_close(logits(merged.model), logits(lm.model), rtol=1e-3, atol=1e-3)

"""Models load from folders, learn in adapters alone, and adapters survive on disk."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from fedfuse.builtin.tokenizers import train_tokenizer
from fedfuse.config.model import AdapterConfig
from fedfuse.errors import FedfuseError
from fedfuse.models.causal_lm import (
    CausalLM,
    adapter_state,
    add_lora,
    load_adapter_state,
    load_causal_lm,
    save_adapter,
)
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.models.folders import LINEAR, TEXTS, logits, train_a_little


def test_load(lm: CausalLM, base_folders: dict[str, Path], architecture: str) -> None:
    assert lm.name == str(base_folders[architecture])
    assert lm.max_length == 128
    assert lm.vocab_size == lm.tokenizer.vocab_size
    assert logits(lm.model).shape[-1] == lm.vocab_size + 5
    assert not lm.model.training
    assert not any(p.requires_grad for p in lm.model.parameters())
    assert lm.tokenizer.special_ids == {"bos": 0, "eos": 1, "pad": 2, "unk": 3}


def test_nothing_is_left_on_the_terminal(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    add_lora(load_causal_lm(str(folder), device="cpu"), AdapterConfig())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype(folder: Path, dtype: str) -> None:
    lm = load_causal_lm(str(folder), dtype=dtype)
    assert lm.model.dtype == getattr(torch, dtype)
    state = adapter_state(add_lora(lm, AdapterConfig(rank=2)).model)
    assert {a.dtype for a in state.values()} == {np.dtype(np.float32)}


def test_home_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_causal_lm("~/base", device="cpu").name == "~/base"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora(lm: CausalLM, architecture: str, checkpointing: bool) -> None:
    before = logits(lm.model)
    weights = {n: p.clone() for n, p in lm.model.named_parameters()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        state_before = torch.get_rng_state()
        model = add_lora(lm, AdapterConfig(rank=2), gradient_checkpointing=checkpointing).model
        assert torch.equal(torch.get_rng_state(), state_before)
    assert torch.equal(logits(model), before)  # a fresh adapter changes nothing
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n.split(".lora_")[0].rsplit(".", 1)[-1] for n in trainable} == LINEAR[architecture]
    assert all("lora_" in name for name in trainable)
    train_a_little(model)
    assert not torch.allclose(logits(model), before)
    for name, value in model.base_model.model.named_parameters():
        if "lora_" not in name:
            assert torch.equal(value, weights[name.replace(".base_layer", "")])


def test_checkpointing_gives_the_same_gradients(base_folders: dict[str, Path]) -> None:
    gradients = []
    for checkpointing in (False, True):
        lm = load_causal_lm(str(base_folders["llama"]), device="cpu")
        model = add_lora(lm, AdapterConfig(), gradient_checkpointing=checkpointing).model
        model.train()
        ids = torch.tensor([[0, 5, 6, 7]])
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_seed_is_all_that_matters(base_folders: dict[str, Path]) -> None:
    def fresh(seed: int) -> dict[str, np.ndarray]:
        lm = load_causal_lm(str(base_folders["gpt2"]), device="cpu")
        return adapter_state(add_lora(lm, AdapterConfig(rank=2), seed=seed).model)

    first, same, other = fresh(1), fresh(1), fresh(2)
    assert first.keys() == other.keys()
    assert all(np.array_equal(first[name], same[name]) for name in first)
    assert not all(np.array_equal(first[name], other[name]) for name in first)


def test_chosen_targets(base_folders: dict[str, Path]) -> None:
    lm = load_causal_lm(str(base_folders["llama"]), device="cpu")
    model = add_lora(lm, AdapterConfig(rank=3, targets="q_proj, v_proj")).model
    shapes = {n.split("layers.")[1]: a.shape for n, a in adapter_state(model).items()}
    assert shapes["0.self_attn.q_proj.lora_A.weight"] == (3, 16)
    assert shapes["1.self_attn.v_proj.lora_B.weight"] == (16, 3)
    assert len(shapes) == 2 * 2 * 2


@pytest.mark.parametrize("targets", ["q_proj,nope", "lm_head", "all-linear,q_proj"])
def test_unknown_targets(base_folders: dict[str, Path], targets: str) -> None:
    lm = load_causal_lm(str(base_folders["llama"]), device="cpu")
    with pytest.raises(FedfuseError) as caught:
        add_lora(lm, AdapterConfig(targets=targets))
    for word in (targets, lm.name, "down_proj, gate_proj, k_proj"):
        assert word in str(caught.value)


def test_bad_settings_are_reported_together() -> None:
    with pytest.raises(FedfuseError) as caught:
        AdapterConfig(rank=0, alpha=-1.0, dropout=1.0, targets=" ,")
    for word in ("least 1, got 0", "got -1.0", "got 1.0", "got ' ,'"):
        assert word in str(caught.value)


def test_adapter_state_round_trip(lm: CausalLM) -> None:
    model = add_lora(lm, AdapterConfig(rank=2)).model
    fresh, untrained = adapter_state(model), logits(model)
    parameters = [id(p) for p in model.parameters()]
    train_a_little(model)
    learnt, trained = adapter_state(model), logits(model)
    load_adapter_state(model, fresh)
    assert torch.equal(logits(model), untrained)
    load_adapter_state(model, learnt)
    assert torch.equal(logits(model), trained)
    # In place: an optimizer goes on with the same parameters.
    assert [id(p) for p in model.parameters()] == parameters
    # Copies on both ways.
    for array in learnt.values():
        array[:] = 9.0
    assert torch.equal(logits(model), trained)


def test_adapter_states_of_renamed_modules(tmp_path: Path) -> None:
    """Of a family some of whose modules PEFT looks for under other names than it gives them."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "head_dim": 16, "num_hidden_layers": 2}
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    config = AutoConfig.for_model(
        "laguna", vocab_size=96, num_attention_heads=2, num_key_value_heads=1, **sizes, **experts
    )
    base = AutoModelForCausalLM.from_config(config).requires_grad_(False)
    tokenizer = TextTokenizer.from_pretrained(train_tokenizer("byte-level-bpe", 280, TEXTS))
    model = add_lora(CausalLM(base, tokenizer, "laguna", 96, 64), AdapterConfig(rank=2)).model
    other = {name: array + 1 for name, array in adapter_state(model).items()}
    assert any("shared_experts" in name for name in other)
    load_adapter_state(model, other)
    for name, array in adapter_state(model).items():
        np.testing.assert_array_equal(array, other[name])


def test_bad_adapter_states(base_folders: dict[str, Path]) -> None:
    lm = load_causal_lm(str(base_folders["opt"]), device="cpu")
    model = add_lora(lm, AdapterConfig(rank=2)).model
    state = adapter_state(model)
    name = next(iter(state))
    with pytest.raises(FedfuseError, match=r"\['extra'\]"):
        load_adapter_state(model, {**state, "extra": state[name]})
    with pytest.raises(FedfuseError, match=name):
        load_adapter_state(model, {n: a for n, a in state.items() if n != name})
    with pytest.raises(FedfuseError, match=r"expected shape \(2, 16\), got \(1, 16\)"):
        load_adapter_state(model, {**state, name: state[name][:1]})


def test_saved_adapters_load_with_peft(lm: CausalLM, tmp_path: Path) -> None:
    model = add_lora(lm, AdapterConfig(rank=2, alpha=3.0)).model
    target = tmp_path / "run" / "adapters" / "server"
    save_adapter(model, target)
    train_a_little(model)
    save_adapter(model, target)  # replaces
    assert sorted(p.name for p in target.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
    ]
    assert [p.name for p in target.parent.iterdir()] == ["server"]
    base = AutoModelForCausalLM.from_pretrained(lm.name, local_files_only=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        loaded = PeftModel.from_pretrained(base, str(target)).eval()
    assert torch.equal(logits(loaded), logits(model))


def test_a_failed_save_leaves_the_old_adapter(
    base_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = load_causal_lm(str(base_folders["opt"]), device="cpu")
    model = add_lora(lm, AdapterConfig(rank=2)).model
    target = tmp_path / "adapter"
    save_adapter(model, target)
    rename = Path.rename

    def failing(self: Path, other: Path) -> Path:
        if self.suffix == ".new":
            raise OSError("disk full")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(FedfuseError, match="disk full"):
        save_adapter(model, target)
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    assert (target / "adapter_model.safetensors").exists()

"""Frozen layers run once: results are those of running them in every pass."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.families.configs import tiny_model
from experiments.families.oracles import forward
from fedfuse.builtin.architectures import ARCHITECTURES, tiny_causal_lm
from fedfuse.config.model import AdapterConfig
from fedfuse.config.training import TrainingConfig
from fedfuse.data.sample import Sample
from fedfuse.distillation.training import train
from fedfuse.evaluation.losses import sample_nll
from fedfuse.knowledge.contexts import view_contexts
from fedfuse.knowledge.extract import extract_with_contexts
from fedfuse.models.causal_lm import CausalLM, adapter_state, add_lora
from fedfuse.models.frozen_layers import FrozenLayers, frozen_layers
from fedfuse.models.head import base_of
from fedfuse.models.kept_states import KeptStates
from fedfuse.models.layer_stack import layer_stack
from fedfuse.models.states_file import StatesFolder
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tokenizers.tokenizer import TextTokenizer

GIB = 2**30
LAYERS, FROZEN = 4, 3
# Tokens of the states that name a file, and of the trials of the output head and of packed inputs.
FIXED = 64 + 2 * 16 + (75 + 60)
# Of every kind: rotary and learned positions, windows, experts, state spaces, scaled embeddings,
# recurrence, attention shifted by position.
PLAIN = ("bloom", "gemma3_text", "mamba", "mixtral", "mistral", "opt", "rwkv", "zamba2", "jamba")
OTHERS = ("gemma3n_text", "xlnet", "hrm_text")


@pytest.fixture
def data(tiny_tokenizers: dict[str, TextTokenizer], public: list[Sample]) -> TokenizedDataset:
    return TokenizedDataset(next(iter(tiny_tokenizers.values())), public, 60)


def _adapted(
    architecture: str, tokenizer: TextTokenizer, layers: float = 1, *, checkpointing: bool = False
) -> CausalLM:
    torch.manual_seed(0)
    size = tokenizer.vocab_size
    model = tiny_causal_lm(architecture, vocab_size=size, width=16, layers=LAYERS)
    model.requires_grad_(False).eval()
    lm = CausalLM(model, tokenizer, "tiny", size, 96)
    adapter = AdapterConfig(rank=2, layers=layers)
    lm = add_lora(lm, adapter, gradient_checkpointing=checkpointing)
    _draw_adapter(lm)
    return lm


def _draw_adapter(lm: CausalLM) -> None:
    for weight in lm.model.parameters():
        if weight.requires_grad:
            weight.data.normal_(0, 0.1)


def _kept(lm: CausalLM, folder: Path, limit: int = GIB) -> CausalLM:
    layers = frozen_layers(lm.name, lm.model, lm.vocab_size, lm.device)
    assert layers is not None
    files = StatesFolder(folder, limit)
    return replace(lm, kept=KeptStates(layers, lm.model, "base", lm.vocab_size, files))


def _count_runs(lm: CausalLM) -> list[int]:
    """Tokens of each pass of the first layer, as they come."""
    seen: list[int] = []
    stack = layer_stack(base_of(lm.model))
    assert stack is not None
    inside = next(module for module in stack.layers[0].modules() if not list(module.children()))
    inside.register_forward_hook(lambda _m, given, _o: seen.append(given[0].shape[:-1].numel()))
    return seen


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_passes_are_those_of_the_whole_model(
    architecture: str, data: TokenizedDataset, tmp_path: Path
) -> None:
    plain = _adapted(architecture, data.tokenizer)
    kept = _kept(plain, tmp_path)
    for _ in range(2):  # what is computed now, and what is read
        np.testing.assert_allclose(sample_nll(kept, data), sample_nll(plain, data), rtol=1e-5)
        found, right = (extract_with_contexts(lm, data, 4) for lm in (kept, plain))
        np.testing.assert_array_equal(found[0].indices, right[0].indices)
        np.testing.assert_allclose(found[0].logprobs, right[0].logprobs, atol=1e-5)
        np.testing.assert_allclose(found[1], right[1], rtol=1e-5)
        view, whole = view_contexts(kept, data), view_contexts(plain, data)
        np.testing.assert_allclose(view.state, whole.state, atol=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_is_that_of_the_whole_model(
    architecture: str, checkpointing: bool, data: TokenizedDataset, tmp_path: Path
) -> None:
    """GPT-2 has dropout of its own, which its trained layers keep."""
    states = []
    for keep in (False, True):
        lm = _adapted(architecture, data.tokenizer, 0.5, checkpointing=checkpointing)
        lm = _kept(lm, tmp_path) if keep else lm
        settings = TrainingConfig(steps=6, batch_size=3, learning_rate=1e-2, max_tokens=80)
        before = adapter_state(lm.model)
        train(lm, data, settings, seed=3, replay=data.take(np.array([4, 1])))
        states.append(adapter_state(lm.model))
        assert any(not np.allclose(before[name], states[-1][name]) for name in before)
    for name, right in states[0].items():
        np.testing.assert_allclose(states[1][name], right, atol=2e-5, err_msg=name)


def test_a_token_runs_through_frozen_layers_once(data: TokenizedDataset, tmp_path: Path) -> None:
    lm = _kept(_adapted("llama", data.tokenizer), tmp_path)
    runs = _count_runs(lm)
    for _ in range(3):
        sample_nll(lm, data)
        train(lm, data, TrainingConfig(steps=3, batch_size=4), seed=0)
        lm.model.eval()
    tokens = int(data.lengths.sum())
    assert sum(runs) == tokens + FIXED


def test_another_process_reads_what_is_there(data: TokenizedDataset, tmp_path: Path) -> None:
    right = sample_nll(_kept(_adapted("llama", data.tokenizer), tmp_path), data)
    lm = _kept(_adapted("llama", data.tokenizer), tmp_path)
    runs = _count_runs(lm)
    np.testing.assert_array_equal(sample_nll(lm, data), right)
    assert sum(runs) == FIXED


def test_states_of_other_weights_are_others(data: TokenizedDataset, tmp_path: Path) -> None:
    """Same name, same shapes: a base that was trained further."""
    sample_nll(_kept(_adapted("llama", data.tokenizer), tmp_path), data)
    plain = _adapted("llama", data.tokenizer)
    with torch.no_grad():
        base_of(plain.model).get_input_embeddings().weight.mul_(1.1)
    found = sample_nll(_kept(plain, tmp_path), data)
    np.testing.assert_allclose(found, sample_nll(plain, data), rtol=1e-5)
    assert len(list(tmp_path.glob("*.states"))) == 2


def test_each_precision_has_its_own(data: TokenizedDataset, tmp_path: Path) -> None:
    plain = _adapted("llama", data.tokenizer)
    kept = _kept(plain, tmp_path)
    for autocast in ("none", "bfloat16"):
        found, right = (sample_nll(replace(lm, autocast=autocast), data) for lm in (kept, plain))
        np.testing.assert_allclose(found, right, rtol=1e-5 if autocast == "none" else 2e-3)
    assert len(list(tmp_path.glob("*.states"))) == 2


@pytest.mark.parametrize("fault", ["no room", "full disk", "no folder"])
def test_without_room_the_layers_run(
    fault: str,
    data: TokenizedDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "file" / "folder" if fault == "no folder" else tmp_path
    (tmp_path / "file").write_text("")
    plain = _adapted("llama", data.tokenizer)
    lm = _kept(plain, folder, limit=100 if fault == "no room" else GIB)
    if fault == "full disk":

        def full(*_: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.pwrite", full)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_allclose(sample_nll(lm, data), sample_nll(plain, data), rtol=1e-6)
    assert caplog.text.count("hidden states are not kept") == 1


def test_a_file_that_goes_away(data: TokenizedDataset, tmp_path: Path) -> None:
    """Another process made room meanwhile."""
    lm = _kept(_adapted("llama", data.tokenizer), tmp_path / "states")
    right = sample_nll(lm, data.take(np.array([0, 1])))
    shutil.rmtree(tmp_path / "states")
    plain = sample_nll(replace(lm, kept=None), data)
    np.testing.assert_allclose(sample_nll(lm, data), plain, rtol=1e-5)
    np.testing.assert_allclose(plain[:2], right, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")  # of the families' own code
@pytest.mark.parametrize("family", PLAIN)
def test_families_begin_behind_frozen_layers(family: str) -> None:
    lm = _family(family)
    layers = frozen_layers(family, lm.model, 96, torch.device("cpu"))
    assert layers is not None
    ids = torch.randint(96, (2, 13), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        right = forward(lm, ids)
        with layers.given(layers.states(ids)):
            found = forward(lm, ids)
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
        # Afterwards it is as it was.
        torch.testing.assert_close(forward(lm, ids), right)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", OTHERS)
def test_others_run_as_a_whole_and_say_so(family: str, caplog: pytest.LogCaptureFixture) -> None:
    lm = _family(family)
    with caplog.at_level(logging.WARNING):
        assert frozen_layers(family, lm.model, 96, torch.device("cpu")) is None
    assert f"{family}: its 2 frozen layers run in every pass: " in caplog.text


def _family(family: str) -> CausalLM:
    torch.manual_seed(0)
    model = tiny_model(family, 96)
    model.requires_grad_(False).eval()
    lm = CausalLM(model, None, family, 96, 64)  # type: ignore[arg-type]
    lm = add_lora(lm, AdapterConfig(rank=2, layers=0.5))
    _draw_adapter(lm)
    return lm


@pytest.mark.parametrize("fault", ["ignored", "shifted"])
def test_the_check_finds_layers_that_do_something_else(
    fault: str, data: TokenizedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = _adapted("llama", data.tokenizer)
    stack = layer_stack(base_of(lm.model))
    assert stack is not None
    layers = FrozenLayers(lm.model, stack.layers, FROZEN)
    ids = torch.arange(20).view(2, 10)
    assert layers.check(ids) == ""
    if fault == "ignored":
        monkeypatch.setattr(FrozenLayers, "given", lambda self, states: torch.no_grad())
        assert "does not read the states" in layers.check(ids)
    else:
        inner: Callable[..., Tensor] = layers.states
        monkeypatch.setattr(
            layers, "states", lambda ids: inner(ids) + 0.1 * torch.ones(16).cumsum(0)
        )
        assert "other hidden states" in layers.check(ids)

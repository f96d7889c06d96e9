"""What a dry run says is what real memory does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from experiments.families.configs import tiny_model
from fedfuse.builtin.architectures import tiny_causal_lm
from fedfuse.builtin.tokenizers import train_tokenizer
from fedfuse.config.model import AdapterConfig
from fedfuse.errors import FedfuseError
from fedfuse.models.causal_lm import adapter_state, add_lora, load_causal_lm
from fedfuse.models.dry_run import ModelNeeds, NeedsUnknown, dry_run
from fedfuse.models.head import CHUNK_BYTES, hidden_states

TEXTS = ["a nurse gave the patient aspirin", "the court granted bail"] * 4
VOCAB, SAMPLES, LENGTH = 300, 6, 40


@pytest.fixture(scope="module", params=["gpt2", "llama", "opt", "gpt_neox"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of each architecture."""
    where = tmp_path_factory.mktemp("models") / str(request.param)
    tokenizer = train_tokenizer("byte-level-bpe", VOCAB, TEXTS)
    tiny_causal_lm(request.param, vocab_size=VOCAB, width=64, layers=3).save_pretrained(where)
    tokenizer.save_pretrained(where)
    return where


def needs(folder: Path, **changes: Any) -> ModelNeeds:
    settings: dict[str, Any] = {
        "dtype": "float32",
        "lora": AdapterConfig(4),
        "samples": SAMPLES,
        "length": LENGTH,
        "scored": SAMPLES,
        "vocab_size": VOCAB,
    }
    return dry_run(str(folder), **(settings | changes))


def real_peak(folder: Path, checkpointing: bool) -> int:
    """Bytes that the allocator gives out at most in the same step, as the profiler saw it."""
    model = add_lora(
        load_causal_lm(str(folder), device="cpu"),
        AdapterConfig(4),
        gradient_checkpointing=checkpointing,
    ).model
    model.train()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        hidden = hidden_states(model, torch.zeros(SAMPLES, LENGTH, dtype=torch.long))
        gradient = torch.ones_like(hidden)
        hidden.backward(gradient)
    results: Any = profiled.profiler.kineto_results  # type: ignore[union-attr]
    events = [event for event in results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_takes_what_the_dry_run_says(folder: Path, checkpointing: bool) -> None:
    head = 2 * SAMPLES * LENGTH * VOCAB * 4
    step = needs(folder, gradient_checkpointing=checkpointing).step - head
    # Operators take some memory inside, for less than a moment. OPT's plan has the largest surplus,
    # 8.5 %, which is 10.2 % of a step with checkpointing.
    assert step == pytest.approx(real_peak(folder, checkpointing), rel=0.11)


def test_weights_are_those_of_the_model(folder: Path) -> None:
    found, half = needs(folder), needs(folder, dtype="bfloat16")
    lm = load_causal_lm(str(folder), device="cpu")
    assert found.base == sum(weight.nbytes for weight in lm.model.parameters())
    assert half.base == found.base // 2
    assert (found.mapped, half.mapped) == (True, False)
    adapter = adapter_state(add_lora(lm, AdapterConfig(4)).model)
    assert found.adapter == half.adapter == sum(array.nbytes for array in adapter.values())
    small = needs(folder, quantization="4bit")
    assert (small.base, small.mapped) == (found.base // 8, False)


def test_more_samples_need_more_and_logits_are_in_chunks(folder: Path) -> None:
    one, two = needs(folder, samples=8).step, needs(folder, samples=16).step
    assert 1.8 < two / one < 2.1
    large = needs(folder, vocab_size=10**6).step - needs(folder, vocab_size=1).step
    assert large == pytest.approx(2 * CHUNK_BYTES["cpu"], rel=0.001)


def test_models_without_config(tmp_path: Path) -> None:
    with pytest.raises(FedfuseError, match=f"model '{tmp_path}' cannot be loaded"):
        needs(tmp_path)


def test_models_that_do_not_run_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedfuse.models.dry_run.hidden_states", lambda *_: 1 / 0)
    with pytest.raises(NeedsUnknown, match=r"memory cannot be computed from its config .*division"):
        needs(folder)


def test_scoring_takes_less_than_training(folder: Path) -> None:
    found = needs(folder, samples=400, scored=400)
    # Without gradients only a layer's activations are there at a time.
    assert 0 < found.scoring < found.step / 2
    assert needs(folder, samples=1, scored=400).scoring == found.scoring


def saved(family: str, folder: Path) -> Path:
    tiny_model(family, VOCAB).save_pretrained(folder)
    train_tokenizer("byte-level-bpe", VOCAB, TEXTS).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_experts_are_planned_in_every_dtype(dtype: str, tmp_path: Path) -> None:
    assert needs(saved("mixtral", tmp_path), dtype=dtype).step > 0


def test_logits_are_planned_where_the_head_cannot_be_told_apart(tmp_path: Path) -> None:
    """BERT's has more layers before it; it gives its own logits, as Llama's does."""
    several = SAMPLES * LENGTH * VOCAB * 4
    whole = needs(saved("bert", tmp_path / "bert"), vocab_size=VOCAB)
    cut = needs(tmp_path / "bert", vocab_size=1)
    assert whole.step - cut.step > 3 * several
    apart = needs(saved("llama", tmp_path / "llama"), vocab_size=VOCAB)
    assert apart.step - needs(tmp_path / "llama", vocab_size=1).step == pytest.approx(
        2 * several, rel=0.01
    )

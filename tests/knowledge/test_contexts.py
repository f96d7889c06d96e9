"""Prompt losses and pooled states equal a plain loop, and know nothing of the answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from fedfuse.data.sample import Sample
from fedfuse.knowledge.contexts import view_contexts
from tests.conftest import Tiny


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "gpt_neox"])
def test_equals_a_loop(name: str, tiny: Callable[[str], Tiny], public: list[Sample]) -> None:
    who = tiny(name)
    data = who.encode(public)
    view = view_contexts(who, data, batch_size=5)
    assert view.state is not None
    assert view.state.dtype == view.loss.dtype == np.float32
    for i in range(len(public)):
        ids = data.batch(np.array([i])).input_ids
        place = data.rows.offsets[i]
        first, size = int(data.rows.row[place]), int(data.rows.byte_start[place])
        with torch.no_grad():
            out = who.model(input_ids=ids, output_hidden_states=True)
        logits = out.logits[0, :first, : who.tokenizer.vocab_size]
        nats = torch.nn.functional.cross_entropy(logits, ids[0, 1 : first + 1], reduction="sum")
        assert view.loss[i] == pytest.approx(nats.item() / size, rel=1e-4)
        right = out.hidden_states[-1][0, : first + 1].mean(0).numpy()
        np.testing.assert_allclose(view.state[i], right, atol=1e-5)


def test_answers_are_not_looked_at(tiny: Callable[[str], Tiny], public: list[Sample]) -> None:
    who = tiny("gpt2")
    others = [replace(sample, answer=" teal.") for sample in public]
    first, second = (view_contexts(who, who.encode(s)) for s in (public, others))
    assert first.state is not None
    assert second.state is not None
    np.testing.assert_allclose(first.loss, second.loss, rtol=1e-5)
    np.testing.assert_allclose(first.state, second.state, atol=1e-5)


def test_plain_text_has_no_prompt(tiny: Callable[[str], Tiny]) -> None:
    who = tiny("gpt2")
    view = view_contexts(who, who.encode([Sample("", "the court rules"), Sample("a", " b")]))
    assert np.isnan(view.loss).tolist() == [True, False]
    assert view.state is not None
    assert np.isfinite(view.state).all()


def test_models_without_a_known_head(
    tiny: Callable[[str], Tiny], public: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    who = tiny("gpt2")
    data = who.encode(public)
    right = view_contexts(who, data)
    monkeypatch.setattr("fedfuse.knowledge.contexts.label_row_states", lambda *_: None)
    found = view_contexts(who, data)
    assert found.state is None
    np.testing.assert_allclose(found.loss, right.loss, rtol=1e-5)


def test_states_are_those_of_the_base(tiny: Callable[[str], Tiny], public: list[Sample]) -> None:
    plain, who = tiny("llama"), tiny("llama")
    model = get_peft_model(who.model, LoraConfig(r=2, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.3)
    data = who.encode(public)
    base, found = (view_contexts(lm, data) for lm in (plain, replace(who, model=model)))
    assert base.state is not None
    assert found.state is not None
    np.testing.assert_array_equal(found.state, base.state)
    assert np.abs(found.loss - base.loss).max() > 1e-3
    assert all(p.requires_grad == ("lora" in name) for name, p in model.named_parameters())

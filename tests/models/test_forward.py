"""Logits of label rows alone, also in chunks, are those of the whole output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedfuse.builtin.architectures import ARCHITECTURES
from fedfuse.config.model import AdapterConfig
from fedfuse.data.sample import Sample
from fedfuse.models import forward
from fedfuse.models.causal_lm import add_lora
from fedfuse.models.forward import label_row_logits, label_row_states, logits_in_chunks
from tests.conftest import Tiny

Make = Callable[[str], Tiny]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("adapted", [False, True])
def test_equals_the_whole_output(
    tiny: Make, public: list[Sample], architecture: str, adapted: bool
) -> None:
    model = tiny(architecture)
    vocab = model.tokenizer.vocab_size
    batch = model.encode([*public[:3], Sample("", "for gout")]).batch(np.array([2, 0, 3]))
    asked: list[torch.Tensor] = []
    head = model.model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: asked.append(output))
    used = add_lora(model, AdapterConfig(rank=2)) if adapted else model
    with torch.no_grad():
        whole = used.model(input_ids=batch.input_ids).logits
        for stop in (None, int((batch.sample < 2).sum())):
            part = batch.select_rows(slice(stop))
            found = label_row_logits(used, part)
            right = whole[part.sample, part.row, :vocab]
            torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-6)
    # Without the sample that is scored from its first row on, the head sees less.
    assert asked[2].shape[1] < asked[0].shape[1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("known", [True, False])
def test_chunks_together_are_the_whole(
    tiny: Make,
    public: list[Sample],
    architecture: str,
    known: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a head that is known some rows at a time, without all at once: the same logits."""
    monkeypatch.setattr(forward, "rows_per_chunk", lambda vocab, device: 5)
    if not known:
        monkeypatch.setattr(forward, "find_head", lambda *_: None)
    model = tiny(architecture)
    batch = model.encode(public).batch(np.arange(6))
    with torch.no_grad():
        right = label_row_logits(model, batch)
        found = list(logits_in_chunks(model, batch))
    assert [len(logits) for _, logits in found][:-1] == [5] * (len(found) - 1)
    assert len(found) == (-(-len(batch.row) // 5) if known else 1)
    torch.testing.assert_close(torch.cat([logits for _, logits in found]), right)
    for name in ("sample", "row", "label"):
        assert torch.cat([getattr(b, name) for b, _ in found]).equal(getattr(batch, name))
    assert np.concatenate([b.index for b, _ in found]).tolist() == batch.index.tolist()
    assert all(b.input_ids is batch.input_ids for b, _ in found)


def test_states_are_those_of_label_rows(tiny: Make, public: list[Sample]) -> None:
    model = tiny("opt")
    batch = model.encode(public).batch(np.array([3, 1]))
    model = replace(model, vocab_size=40)
    states = label_row_states(model, batch)
    assert states is not None
    assert states.hidden.requires_grad
    assert states.head.weight.shape == (40, states.hidden.shape[1])
    right = label_row_logits(model, batch)
    torch.testing.assert_close(states.head.logits(states.hidden), right)

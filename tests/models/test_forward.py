"""Logits of label rows alone are those of the whole output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedfuse.data.sample import Sample
from fedfuse.models.architectures import ARCHITECTURES
from fedfuse.models.causal_lm import CausalLM, LoraSettings, add_lora
from fedfuse.models.forward import label_row_logits
from tests.conftest import MAX_LENGTH, Tiny

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
    used = model.model
    if adapted:
        lm = CausalLM(model.model, model.tokenizer, "tiny", vocab, MAX_LENGTH)
        used = add_lora(lm, LoraSettings(rank=2))
    with torch.no_grad():
        whole = used(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        for stop in (None, int((batch.sample < 2).sum())):
            part = replace(
                batch,
                sample=batch.sample[:stop],
                row=batch.row[:stop],
                label=batch.label[:stop],
                index=batch.index[:stop],
            )
            found = label_row_logits(used, part, vocab)
            right = whole[part.sample, part.row, :vocab]
            torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-6)
    # Without the sample that is scored from its first row on, the head sees less.
    assert asked[2].shape[1] < asked[0].shape[1]

"""The four architectures: causal, of the size asked for, without dropout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedfuse.builtin.architectures import ARCHITECTURES, MAX_LENGTH, tiny_causal_lm


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_size_and_length(architecture: str) -> None:
    model = tiny_causal_lm(architecture, vocab_size=37, width=16, layers=3)
    assert model.config.num_hidden_layers == 3
    assert model.get_input_embeddings().weight.shape == (37, 16)
    config = model.config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 1, 2)
    ids = torch.arange(MAX_LENGTH)[None, :] % 37
    with torch.no_grad():
        assert model(input_ids=ids).logits.shape == (1, MAX_LENGTH, 37)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_dropout_and_from_the_seed(architecture: str) -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(5)
        models.append(tiny_causal_lm(architecture, vocab_size=20, width=8, layers=1).train())
    dropouts = [m.p for m in models[0].modules() if isinstance(m, nn.Dropout)]
    assert not any(dropouts)
    ids = torch.tensor([[0, 4, 5, 6]])
    with torch.no_grad():
        first, second = (model(input_ids=ids).logits for model in models)
        assert torch.equal(first, models[0](input_ids=ids).logits)
    assert torch.equal(first, second)

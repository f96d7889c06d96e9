"""Short phases of training on tiny models, for the tests of the loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedfuse.config.model import AdapterConfig
from fedfuse.config.training import TrainingConfig
from fedfuse.distillation.training import train
from fedfuse.models.causal_lm import add_lora
from fedfuse.sparse import SparseDistribution
from fedfuse.tokenizers.dataset import TokenizedDataset
from tests.conftest import Tiny

Make = Callable[[str], Tiny]
SETTINGS = TrainingConfig(steps=6, batch_size=4, learning_rate=5e-3)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def run(
    tiny: Tiny,
    data: TokenizedDataset,
    settings: TrainingConfig,
    label_weight: float | None = None,
    **more: Any,
) -> Any:
    if label_weight is not None:
        settings = weighted(settings, label_weight)
    return train(tiny, data, settings, **({"seed": 3} | more))


def weighted(settings: TrainingConfig, label_weight: float) -> TrainingConfig:
    objective = replace(settings.objective, label_weight=label_weight)
    return replace(settings, objective=objective)


def one_hot(data: TokenizedDataset, token: int, weight: float = 1.0) -> SparseDistribution:
    """A teacher who says the same token everywhere."""
    rows = len(data.rows.token)
    return SparseDistribution(
        np.full((rows, 1), token),
        np.zeros((rows, 1), dtype=np.float32),
        np.full(rows, -np.inf, dtype=np.float32),
        np.full(rows, weight, dtype=np.float32),
    )


def adapted(tiny: Make, dropout: float = 0.2) -> Tiny:
    """With a LoRA adapter that is no longer without effect."""
    model = tiny("llama")
    model.model.requires_grad_(False)
    lora = add_lora(model, AdapterConfig(rank=2, dropout=dropout))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in lora.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    assert isinstance(lora, Tiny)
    return lora

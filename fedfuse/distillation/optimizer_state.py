"""State of an optimizer and a loss scale as flat arrays, to carry between phases."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy import ndarray
from torch import nn

# State of a training phase: step, samples seen, moments, loss scale; see ``Training.state``.
TrainingState = dict[str, ndarray]
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def optimizer_moments(
    optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]
) -> TrainingState:
    """AdamW's moments and step counts: ``exp_avg/NAME``, ``exp_avg_sq/NAME``, ``step/NAME``."""
    return {
        f"{kind}/{name}": value.detach().to("cpu", torch.float32, copy=True).numpy()
        for name, parameter in named.items()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter], state: TrainingState
) -> None:
    """Restore moments of ``optimizer_moments``; other entries are left alone."""
    for key, value in state.items():
        kind, slash, name = key.partition("/")
        if slash and kind in _MOMENTS:
            optimizer.state[named[name]][kind] = torch.tensor(value, device=named[name].device)


def scaler_state(scaler: torch.amp.GradScaler) -> TrainingState:
    """Loss scale and steps since it last changed; empty where none is used."""
    if not scaler.is_enabled():
        return {}
    state = scaler.state_dict()
    return {"scale": np.array(state["scale"]), "growth": np.array(state["_growth_tracker"])}


def restore_scaler(scaler: torch.amp.GradScaler, state: TrainingState) -> None:
    """Restore a ``scaler_state``."""
    if scaler.is_enabled() and "scale" in state:
        kept = {"scale": float(state["scale"]), "_growth_tracker": int(state["growth"])}
        scaler.load_state_dict(scaler.state_dict() | kept)

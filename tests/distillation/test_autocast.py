"""Training in half precision: gradients, results, and steps that overflow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedfuse.builtin.architectures import ARCHITECTURES
from fedfuse.config.training import AUTOCAST, Objective
from fedfuse.data.sample import Sample
from fedfuse.distillation.targets import batch_losses
from tests.distillation.phases import SETTINGS, Make, adapted, one_hot, run, weights


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("autocast", "tolerance"), [("bfloat16", 0.03), ("float16", 0.004)])
def test_gradients_in_mixed_precision(
    tiny: Make, public: list[Sample], architecture: str, autocast: str, tolerance: float
) -> None:
    """The whole gradient within a few steps of the precision (2^-8, 2^-11); all is float32."""
    found = []
    for precision in ("none", autocast):
        model = tiny(architecture)
        data = model.encode(public)
        teacher = replace(
            one_hot(data, 5), tail_logprob=np.full(len(data.rows.token), -1.0, np.float32)
        )
        lm = replace(model, autocast=precision)
        loss, _ = batch_losses(lm, data.batch(np.arange(8)), teacher, Objective(0.3))
        assert loss.dtype == torch.float32
        assert "Fused" in repr(loss.grad_fn) or architecture
        (1024 * loss).backward()
        named = dict(model.model.named_parameters())
        assert {p.grad.dtype for p in named.values() if p.grad is not None} == {torch.float32}
        gradient = [p.grad.flatten() for p in named.values() if p.grad is not None]
        found.append((loss.item(), torch.cat(gradient) / 1024))
    (right, exact), (loss_, rounded) = found
    assert loss_ == pytest.approx(right, rel=tolerance)
    assert loss_ != right
    assert float((exact - rounded).norm() / exact.norm()) < tolerance


@pytest.mark.parametrize("autocast", AUTOCAST)
def test_mixed_precision_learns_the_same(tiny: Make, public: list[Sample], autocast: str) -> None:
    model = adapted(tiny, dropout=0.0)
    data = model.encode(public)
    loss, state = run(replace(model, autocast=autocast), data, replace(SETTINGS, steps=20))
    exact, _ = run(adapted(tiny, dropout=0.0), data, replace(SETTINGS, steps=20))
    assert loss == pytest.approx(exact, rel=0.02)
    trained = [p for p in model.model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert all(v.dtype == np.float32 for name, v in state.items() if "/" in name)


def test_a_step_that_overflows_is_left_out(tiny: Make, public: list[Sample]) -> None:
    """The loss scale is halved, and the weights stay."""
    model = adapted(tiny)
    data = model.encode(public)
    state = {"samples_seen": np.array(4), "scale": np.array(2.0**60), "growth": np.array(0)}
    before = weights(model.model)
    half = replace(model, autocast="float16")
    _, after = run(half, data, replace(SETTINGS, steps=1), state=state)
    assert float(after["scale"]) == 2.0**59
    assert all(torch.equal(before[n], p) for n, p in weights(model.model).items())

"""Training that stops and goes on, in a phase and from phase to phase."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedfuse.config.training import AUTOCAST
from fedfuse.data.sample import Sample
from fedfuse.distillation.optimizer_state import TrainingState, optimizer_moments, restore_optimizer
from fedfuse.distillation.training import Training, seed_dropout
from fedfuse.tokenizers.dataset import TokenizedDataset
from tests.conftest import Tiny
from tests.distillation.phases import SETTINGS, Make, adapted, one_hot, run, weighted, weights


@pytest.mark.parametrize("autocast", AUTOCAST)
@pytest.mark.parametrize("stop", [1, 4])
def test_a_stopped_phase_goes_on_bit_for_bit(
    tiny: Make, public: list[Sample], autocast: str, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in an epoch and in a phase, with dropout, replay, parts and a loss scale."""
    # So small that the loss scale grows between stop and end.
    monkeypatch.setattr(torch.amp.GradScaler, "__init__", quickly_growing)
    settings = weighted(replace(SETTINGS, steps=6, batch_size=5, max_tokens=60), 0.3)

    def begin(model: Tiny, state: TrainingState | None = None) -> Training:
        data = model.encode(public[:8])
        return Training(
            replace(model, autocast=autocast),
            data,
            settings,
            seed=3,
            teacher=one_hot(data, 5),
            replay=model.encode(public[8:]),
            state=state,
        )

    straight = adapted(tiny)
    training = begin(straight)
    losses = [training.advance() for _ in range(6)]

    first = adapted(tiny)
    early = begin(first)
    found = [early.advance() for _ in range(stop)]
    kept = {name: value.copy() for name, value in early.state().items()}
    torch.manual_seed(99)  # what comes between must not matter
    second = adapted(tiny)
    second.model.load_state_dict(first.model.state_dict())
    late = begin(second, kept)
    assert late.step == stop
    found += [late.advance() for _ in range(6 - stop)]
    assert found == losses
    right = weights(straight.model)
    assert all(torch.equal(right[n], p) for n, p in weights(second.model).items())
    state, again = training.state(), late.state()
    assert state.keys() == again.keys()
    assert all(np.array_equal(state[name], again[name]) for name in state)
    assert ("scale" in state) == (autocast == "float16")
    if "scale" in state:
        assert float(state["scale"]) == 2.0**13
        assert float(state["growth"]) == 0
    # What is forgotten matters: dropout and order follow the samples seen.
    third = adapted(tiny)
    third.model.load_state_dict(first.model.state_dict())
    wrong = begin(third, kept | {"samples_seen": kept["samples_seen"] * 0})
    assert wrong.advance() != losses[stop]


def quickly_growing(scaler: torch.amp.GradScaler, device: str, enabled: bool) -> None:
    """A loss scale that doubles every second step."""
    options = {"init_scale": 2.0**10, "growth_interval": 2}
    ORIGINAL_SCALER(scaler, device, enabled=enabled, **options)  # type: ignore[arg-type]


ORIGINAL_SCALER = torch.amp.GradScaler.__init__


def test_a_phase_is_a_phase_however_it_is_run(tiny: Make, public: list[Sample]) -> None:
    """``train`` is ``Training`` to its end; what it returns begins the next phase, not this one."""
    one, other = tiny("opt"), tiny("opt")
    data = one.encode(public)
    _, state = run(one, data, SETTINGS)
    training = Training(other, data, SETTINGS, seed=3)
    while training.step < SETTINGS.steps:
        training.advance()
    assert all(torch.equal(p, weights(other.model)[n]) for n, p in weights(one.model).items())
    told: list[int] = []
    _, after = run(one, data, SETTINGS, state=state, on_step=lambda step, _: told.append(step))
    assert told == [1, 2, 3, 4, 5, 6]
    assert int(after["samples_seen"]) == 2 * int(state["samples_seen"]) == 48


def test_without_the_moments_training_is_another(tiny: Make, public: list[Sample]) -> None:
    ends = []
    for names in (("exp_avg", "exp_avg_sq", "step"), ()):
        model = tiny("llama")
        data = model.encode(public)
        _, state = run(model, data, replace(SETTINGS, steps=3))
        kept = {n: v for n, v in state.items() if "/" not in n or n.split("/")[0] in names}
        run(model, data, replace(SETTINGS, steps=3), state=kept)
        ends.append(weights(model.model))
    assert max(float((ends[0][n] - ends[1][n]).abs().max()) for n in ends[0]) > 1e-3


def test_moments_round_trip(gpt2: Tiny, data: TokenizedDataset) -> None:
    _, moments = run(gpt2, data, SETTINGS)
    moments = {name: value for name, value in moments.items() if "/" in name}
    assert all(v.dtype == np.float32 for v in moments.values())
    named = dict(gpt2.model.named_parameters())
    optimizer = torch.optim.AdamW(named.values())
    restore_optimizer(optimizer, named, moments)
    again = optimizer_moments(optimizer, named)
    assert again.keys() == moments.keys()
    assert all(np.array_equal(again[name], moments[name]) for name in moments)
    assert {float(v) for name, v in again.items() if name.startswith("step/")} == {6.0}
    # What was restored is a copy: the next step must not change what was kept.
    for parameter in named.values():
        parameter.grad = torch.ones_like(parameter)
    before = {name: value.copy() for name, value in moments.items()}
    optimizer.step()
    assert all(np.array_equal(before[name], moments[name]) for name in moments)


def test_a_steps_dropout_is_that_of_its_seed() -> None:
    """And no step leaves anything behind for devices that are not there."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    waiting = len(torch.cuda._queued_calls)
    seed_dropout(5, torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)
    assert len(torch.cuda._queued_calls) == waiting

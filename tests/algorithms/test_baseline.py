"""A baseline takes back what harms, halves its rate, ends in time, and counts all that it took."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedfuse.algorithms.baseline import LabelPhase, train_baseline
from fedfuse.algorithms.effort import Effort
from fedfuse.algorithms.local_model import LocalModel
from fedfuse.config.model import AdapterConfig
from fedfuse.config.training import TrainingConfig
from fedfuse.data.sample import Sample
from fedfuse.distillation.training import NotFinite
from fedfuse.evaluation.losses import sample_nll
from fedfuse.models.causal_lm import add_lora
from tests.conftest import MAX_LENGTH, Tiny

Make = Callable[[str], Tiny]
PRIVATE = TrainingConfig(steps=20, batch_size=2, learning_rate=0.08)
PUBLIC = TrainingConfig(steps=6, batch_size=3, learning_rate=0.04)


@pytest.fixture
def model(tiny: Make, public: list[Sample]) -> LocalModel:
    base = tiny("llama")
    base.model.requires_grad_(False)
    lm = add_lora(base, AdapterConfig(rank=4))
    return LocalModel(lm, public=public, test=public[:4], questions=[], max_length=MAX_LENGTH)


@pytest.fixture
def phases(model: LocalModel, public: list[Sample]) -> list[LabelPhase]:
    private = model.encode(public[:5])
    return [
        LabelPhase(private, PRIVATE, seed=1),
        LabelPhase(model.public, PUBLIC, seed=2, replay=private, public=True),
    ]


@pytest.fixture
def learned(
    model: LocalModel, phases: list[LabelPhase], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[int, float, Any]]:
    """Steps, rate and state of each phase that learns; the adapter tells how many did."""
    calls: list[tuple[int, float, Any]] = []
    names = model.adapter

    def learn(data: Any, settings: TrainingConfig, **options: Any) -> tuple[float, Any]:
        phase = phases[len(calls) % 2]
        assert data is phase.data
        assert (options["seed"], options["replay"]) == (phase.seed, phase.replay)
        calls.append((settings.steps, settings.learning_rate, options["state"]))
        model.adapter = {name: np.full_like(value, len(calls)) for name, value in names.items()}
        return 0.0, {"calls": np.array(len(calls))}

    monkeypatch.setattr(model, "learn", learn)
    return calls


def judged(model: LocalModel, monkeypatch: pytest.MonkeyPatch, *losses: float) -> None:
    """Held-out losses are given: before anything, and after each part."""
    given = iter(losses)
    monkeypatch.setattr(model, "losses", lambda data: np.array([next(given)]))


def left(model: LocalModel) -> float:
    return float(next(iter(model.adapter.values())).flat[0])


def test_parts_grow_to_whole_rounds(
    model: LocalModel,
    phases: list[LabelPhase],
    learned: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged(model, monkeypatch, 5, 4, 3, 3, 2, 1)
    effort = train_baseline(model, phases, 3, model.public)
    steps = [(5, 1), (5, 1), (10, 4), (20, 6), (20, 6)]
    assert [call[0] for call in learned] == [number for both in steps for number in both]
    assert {call[1] for call in learned} == {0.08, 0.04}
    assert learned[0][2] is learned[1][2] is None
    assert [int(call[2]["calls"]) for call in learned[2:]] == list(range(1, 9))
    assert left(model) == 10
    # 3 rounds of 20 private steps of 2 samples, and 6 public ones of 3, with as many replayed.
    assert effort == Effort(steps=78, private_samples=120 + 54, public_samples=54)


def test_what_harms_is_taken_back_and_the_rate_halved(
    model: LocalModel,
    phases: list[LabelPhase],
    learned: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged(model, monkeypatch, 5, 4, float("nan"), 3.5, 3.6, 3.4)
    effort = train_baseline(model, phases, 3, model.public)
    assert [call[1] for call in learned[::2]] == [0.08, 0.08, 0.04, 0.04, 0.02]
    # The third part goes on with the states of the first, the fifth with those of the third.
    assert [int(call[2]["calls"]) for call in learned[2:]] == [1, 2, 1, 2, 5, 6, 5, 6]
    assert left(model) == 10
    assert effort.steps == 78


def test_it_ends_after_two_harms(
    model: LocalModel,
    phases: list[LabelPhase],
    learned: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged(model, monkeypatch, 5, 4, 4.5, 4.1)
    effort = train_baseline(model, phases, 3, model.public)
    assert left(model) == 2
    assert effort.steps == 5 + 1 + 5 + 1 + 10 + 4


def test_what_is_not_finite_is_taken_back(
    model: LocalModel,
    phases: list[LabelPhase],
    learned: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learn = model.learn

    def breaks(*arguments: Any, **options: Any) -> Any:
        result = learn(*arguments, **options)
        if len(learned) in (3, 4):
            raise NotFinite("broken")
        return result

    monkeypatch.setattr(model, "learn", breaks)
    effort = train_baseline(model, phases, 1, None)
    assert [call[1] for call in learned[::2]] == [0.08, 0.08, 0.04]
    assert [int(call[2]["calls"]) for call in learned[4:]] == [1, 2]
    assert left(model) == 6
    assert effort.steps == 26


def test_nothing_is_judged_without_held_out_samples(
    model: LocalModel, phases: list[LabelPhase], learned: list[Any]
) -> None:
    assert train_baseline(model, phases, 2, None).steps == 2 * 26
    assert left(model) == 8


@pytest.mark.parametrize("rounds", [0, 1])
def test_no_steps_are_no_parts(model: LocalModel, rounds: int) -> None:
    phase = LabelPhase(model.public, TrainingConfig(steps=0), seed=0)
    before = model.adapter
    assert train_baseline(model, [phase], rounds, model.public) == Effort()
    assert all((model.adapter[name] == value).all() for name, value in before.items())


def test_it_learns(model: LocalModel, public: list[Sample]) -> None:
    """From a rate that harms at first it comes to one that does not."""
    held_out = model.encode(public[:3])
    before = sample_nll(model.lm, held_out).sum()
    phase = LabelPhase(held_out, TrainingConfig(steps=24, batch_size=3, learning_rate=2.0), seed=0)
    effort = train_baseline(model, [phase], 6, held_out)
    assert effort.private_samples == 3 * effort.steps
    assert sample_nll(model.lm, held_out).sum() <= before
    gentle = LabelPhase(held_out, TrainingConfig(steps=24, batch_size=3, learning_rate=2e-2), 0)
    model.reset()
    train_baseline(model, [gentle], 1, held_out)
    assert sample_nll(model.lm, held_out).sum() < 0.95 * before

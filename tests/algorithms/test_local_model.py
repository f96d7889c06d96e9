"""A participant learns in its adapter, tells what it knows, is scored, and can start anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedfuse.algorithms.local_model import LocalModel
from fedfuse.config.model import AdapterConfig
from fedfuse.config.training import Objective, TrainingConfig
from fedfuse.data.sample import Sample, fingerprint
from fedfuse.evaluation.scoring import Evaluator
from fedfuse.knowledge.extract import extract
from fedfuse.models.causal_lm import add_lora
from fedfuse.sparse import SparseDistribution
from tests.conftest import MAX_LENGTH, Tiny

Make = Callable[[str], Tiny]
SETTINGS = TrainingConfig(steps=12, batch_size=6, learning_rate=2e-2)
QUESTIONS = [Sample("for gout", " zinc.", "clinic", (" bonds.", " zinc."), 1)]


@pytest.fixture
def base(tiny: Make) -> Tiny:
    return tiny("llama")


@pytest.fixture
def local_model(base: Tiny, public: list[Sample]) -> LocalModel:
    base.model.requires_grad_(False)
    return LocalModel(
        add_lora(base, AdapterConfig(rank=4)),
        public=public,
        test=public[:4],
        questions=QUESTIONS,
        max_length=MAX_LENGTH,
    )


def test_learning_is_in_the_adapter_alone(local_model: LocalModel) -> None:
    frozen = {
        name: value.clone()
        for name, value in local_model.lm.model.state_dict().items()
        if "lora" not in name
    }
    before, score = local_model.adapter, local_model.score()
    told: list[int] = []
    loss, moments = local_model.learn(
        local_model.public, SETTINGS, seed=0, on_step=lambda step, _: told.append(step)
    )
    assert told == list(range(1, 13))
    after = local_model.adapter
    assert before.keys() == after.keys()
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    state = local_model.lm.model.state_dict()
    assert all(torch.equal(frozen[name], state[name]) for name in frozen)
    assert all("lora" in name for name in moments if "/" in name)
    assert len(moments) > 2
    assert np.isfinite(loss)
    assert local_model.score()["clinic"].loss < score["clinic"].loss
    # Kept arrays are copies: later steps do not change them.
    local_model.learn(local_model.public, SETTINGS, seed=1)
    assert all(np.array_equal(after[n], a) for n, a in after.items())
    assert any(not np.array_equal(after[n], a) for n, a in local_model.adapter.items())


def test_reset_is_the_base_again(local_model: LocalModel, tiny: Make) -> None:
    local_model.learn(local_model.public, SETTINGS, seed=0)
    learnt = local_model.adapter
    local_model.reset()
    base = tiny("llama")
    fresh = extract(base, base.encode(local_model.public.samples), 3)
    np.testing.assert_allclose(local_model.knowledge(3).logprobs, fresh.logprobs, atol=1e-5)
    local_model.adapter = learnt
    assert not np.allclose(local_model.knowledge(3).logprobs, fresh.logprobs, atol=1e-2)
    for name, values in local_model.adapter.items():
        np.testing.assert_array_equal(values, learnt[name])


def test_knowledge_and_score_are_those_of_its_model(local_model: LocalModel) -> None:
    public = local_model.public.samples
    knowledge = local_model.knowledge(5)
    assert knowledge.k == 5
    assert knowledge.public == fingerprint(public)
    assert knowledge.tokenizer == local_model.tokenizer.fingerprint
    right = Evaluator(local_model.tokenizer, public[:4], QUESTIONS, MAX_LENGTH)
    assert local_model.score() == right.evaluate(local_model.nll)[0]
    assert local_model.score()["clinic"].accuracy in (0.0, 1.0)


def test_it_learns_from_a_teacher_and_replays(local_model: LocalModel) -> None:
    """Every argument reaches the loop: a teacher's token wins, unless all weight is on labels."""
    rows = len(local_model.public.rows.token)
    teacher = SparseDistribution(
        np.full((rows, 1), 9),
        np.zeros((rows, 1), dtype=np.float32),
        np.full(rows, -np.inf, dtype=np.float32),
        np.ones(rows, dtype=np.float32),
    )
    one_step = TrainingConfig(steps=1, batch_size=12, learning_rate=1e-9)
    distill = replace(one_step, objective=Objective(0.0))
    data = local_model.public
    labels, _ = local_model.learn(data, one_step, seed=0)
    same, _ = local_model.learn(data, one_step, seed=0, teacher=teacher)
    assert same == pytest.approx(labels, rel=1e-4)
    taught, _ = local_model.learn(data, distill, seed=0, teacher=teacher)
    both, _ = local_model.learn(data, distill, seed=0, teacher=teacher, replay=data)
    assert both == pytest.approx(taught + labels, rel=1e-4)
    settings = replace(SETTINGS, objective=Objective(0.0))
    mean, moments = local_model.learn(data, settings, seed=0, teacher=teacher)
    assert mean < taught
    _, more = local_model.learn(data, one_step, seed=0, state=moments)
    steps = {float(value) for name, value in more.items() if name.startswith("step/")}
    assert steps == {13.0}

"""A participant learns in its adapter, tells what it knows, is scored, and can start anew."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fedfuse.algorithms.local_model import Participant
from fedfuse.config.training import TrainingSettings
from fedfuse.data.sample import Sample, fingerprint
from fedfuse.distillation.targets import Teacher
from fedfuse.evaluation.scoring import Evaluator
from fedfuse.knowledge.extract import extract
from fedfuse.models.causal_lm import CausalLM, LoraSettings, add_lora
from tests.conftest import MAX_LENGTH, Tiny

Make = Callable[[str], Tiny]
SETTINGS = TrainingSettings(steps=12, batch_size=6, learning_rate=2e-2)
QUESTIONS = [Sample("for gout", " zinc.", "clinic", (" bonds.", " zinc."), 1)]


@pytest.fixture
def base(tiny: Make) -> Tiny:
    return tiny("llama")


@pytest.fixture
def participant(base: Tiny, public: list[Sample]) -> Participant:
    base.model.requires_grad_(False)
    lm = CausalLM(base.model, base.tokenizer, "tiny", base.tokenizer.vocab_size, MAX_LENGTH)
    return Participant(
        add_lora(lm, LoraSettings(rank=4)),
        base.tokenizer,
        public=public,
        test=public[:4],
        questions=QUESTIONS,
        max_length=MAX_LENGTH,
    )


def test_learning_is_in_the_adapter_alone(participant: Participant) -> None:
    frozen = {
        name: value.clone()
        for name, value in participant.model.state_dict().items()
        if "lora" not in name
    }
    before, score = participant.adapter, participant.score()
    told: list[int] = []
    loss, moments = participant.learn(
        participant.public, SETTINGS, seed=0, on_step=lambda step, _: told.append(step)
    )
    assert told == list(range(1, 13))
    after = participant.adapter
    assert before.keys() == after.keys()
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    state = participant.model.state_dict()
    assert all(torch.equal(frozen[name], state[name]) for name in frozen)
    assert all("lora" in name for name in moments if "/" in name)
    assert len(moments) > 2
    assert np.isfinite(loss)
    assert participant.score()["clinic"].loss < score["clinic"].loss
    # Kept arrays are copies: later steps do not change them.
    participant.learn(participant.public, SETTINGS, seed=1)
    assert all(np.array_equal(after[n], a) for n, a in after.items())
    assert any(not np.array_equal(after[n], a) for n, a in participant.adapter.items())


def test_reset_is_the_base_again(participant: Participant, tiny: Make) -> None:
    participant.learn(participant.public, SETTINGS, seed=0)
    learnt = participant.adapter
    participant.reset()
    base = tiny("llama")
    fresh = extract(base.model, base.encode(participant.public.samples), 3)
    np.testing.assert_allclose(participant.knowledge(3).logprobs, fresh.logprobs, atol=1e-5)
    participant.adapter = learnt
    assert not np.allclose(participant.knowledge(3).logprobs, fresh.logprobs, atol=1e-2)
    for name, values in participant.adapter.items():
        np.testing.assert_array_equal(values, learnt[name])


def test_knowledge_and_score_are_those_of_its_model(participant: Participant) -> None:
    public = participant.public.samples
    knowledge = participant.knowledge(5)
    assert knowledge.k == 5
    assert knowledge.public == fingerprint(public)
    assert knowledge.tokenizer == participant.tokenizer.fingerprint
    right = Evaluator(participant.tokenizer, public[:4], QUESTIONS, MAX_LENGTH)
    assert participant.score() == right.score(participant.model)
    assert participant.score()["clinic"].accuracy in (0.0, 1.0)


def test_it_learns_from_a_teacher_and_replays(participant: Participant) -> None:
    """Every argument reaches the loop: a teacher's token wins, unless all weight is on labels."""
    rows = len(participant.public.rows.token)
    teacher = Teacher(
        np.full((rows, 1), 9),
        np.zeros((rows, 1), dtype=np.float32),
        np.full(rows, -np.inf, dtype=np.float32),
        np.ones(rows, dtype=np.float32),
    )
    one_step = TrainingSettings(steps=1, batch_size=12, learning_rate=1e-9)
    data = participant.public
    labels, _ = participant.learn(data, one_step, seed=0)
    same, _ = participant.learn(data, one_step, seed=0, teacher=teacher, label_share=1.0)
    assert same == pytest.approx(labels, rel=1e-4)
    taught, _ = participant.learn(data, one_step, seed=0, teacher=teacher, label_share=0.0)
    both, _ = participant.learn(
        data, one_step, seed=0, teacher=teacher, label_share=0.0, replay=data
    )
    assert both == pytest.approx(taught + labels, rel=1e-4)
    mean, moments = participant.learn(data, SETTINGS, seed=0, teacher=teacher, label_share=0.0)
    assert mean < taught
    _, more = participant.learn(data, one_step, seed=0, state=moments)
    steps = {float(value) for name, value in more.items() if name.startswith("step/")}
    assert steps == {13.0}

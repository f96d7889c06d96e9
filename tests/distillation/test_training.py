"""The training loop: its schedule, its order, and that it learns what it should."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedfuse.builtin.architectures import ARCHITECTURES
from fedfuse.config.training import Objective, TrainingConfig
from fedfuse.data.sample import Sample
from fedfuse.distillation.loss import DistillationTargets
from fedfuse.distillation.optimizer_state import TrainingState
from fedfuse.distillation.targets import batch_losses
from fedfuse.distillation.training import NotFinite, Training, schedule
from fedfuse.errors import FedfuseError
from fedfuse.evaluation.losses import sample_nll
from fedfuse.sparse import SparseDistribution
from fedfuse.tokenizers.dataset import TokenizedDataset
from tests.conftest import Tiny
from tests.distillation.phases import SETTINGS, Make, adapted, one_hot, run, weights


def test_schedule_by_hand() -> None:
    """Two steps of warm-up, then a cosine over eight from 1 to 0.2."""
    settings = TrainingConfig(10, 1, 1.0, warmup_ratio=0.2, final_ratio=0.2)
    values = [schedule(step, settings) for step in range(11)]
    assert values[:3] == [0.5, 1.0, 1.0]
    assert values[6] == pytest.approx(0.6)
    assert values[4] == pytest.approx(0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2)
    assert values[10] == pytest.approx(0.2)
    assert values[2:] == sorted(values[2:], reverse=True)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_schedule_may_be_constant(steps: int) -> None:
    settings = TrainingConfig(steps, 1, 1.0, warmup_ratio=0.0, final_ratio=1.0)
    assert [schedule(step, settings) for step in range(steps)] == [1.0] * steps


def test_the_schedule_is_what_the_optimizer_gets(
    gpt2: Tiny, data: TokenizedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []
    step = torch.optim.AdamW.step

    def recorded(self: torch.optim.AdamW, *args: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        assert self.param_groups[0]["betas"] == (0.9, 0.95)
        assert self.param_groups[0]["weight_decay"] == SETTINGS.weight_decay
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    run(gpt2, data, SETTINGS)
    assert rates == [SETTINGS.learning_rate * schedule(i, SETTINGS) for i in range(6)]


def test_epochs_go_on_over_phases(
    gpt2: Tiny, data: TokenizedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three phases of two steps see the twelve samples once in three steps, then once more."""
    seen: list[int] = []
    batch = TokenizedDataset.batch

    def recorded(self: TokenizedDataset, which: np.ndarray, device: object) -> Any:
        seen.extend(which.tolist())
        return batch(self, which, "cpu")

    monkeypatch.setattr(TokenizedDataset, "batch", recorded)
    state: TrainingState | None = None
    for _ in range(3):
        _, state = run(gpt2, data, replace(SETTINGS, steps=2), state=state)
    assert state is not None
    assert (int(state["samples_seen"]), int(state["step"])) == (24, 0)
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12))
    assert seen[:12] != seen[12:]


def test_two_runs_with_one_seed_are_the_same(tiny: Make, public: list[Sample]) -> None:
    results = []
    for noise in range(2):
        torch.manual_seed(noise)  # what came before must not matter
        model = tiny("gpt2")
        for module in model.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.1
        loss, moments = run(model, model.encode(public), SETTINGS)
        results.append((loss, weights(model.model), moments))
    (loss, first, moments), (again, second, same) = results
    assert loss == again
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(np.array_equal(moments[name], same[name]) for name in moments)


def test_the_loss_returned_is_of_the_last_tenth(gpt2: Tiny, data: TokenizedDataset) -> None:
    told: list[tuple[int, float]] = []
    settings = replace(SETTINGS, steps=20)
    loss, _ = run(gpt2, data, settings, on_step=lambda step, value: told.append((step, value)))
    assert [step for step, _ in told] == list(range(1, 21))
    assert loss == pytest.approx((told[-2][1] + told[-1][1]) / 2)
    assert told[-1][1] < told[0][1]
    assert not gpt2.model.training


def test_no_steps(gpt2: Tiny, data: TokenizedDataset) -> None:
    before = weights(gpt2.model)
    loss, moments = run(gpt2, data, replace(SETTINGS, steps=0))
    assert math.isnan(loss)
    assert moments == {}
    assert all(torch.equal(before[n], p) for n, p in weights(gpt2.model).items())


def test_only_trainable_parameters_move(gpt2: Tiny, data: TokenizedDataset) -> None:
    gpt2.model.requires_grad_(False)
    moving = {n for n, p in gpt2.model.named_parameters() if n.endswith("mlp.c_fc.weight")}
    for name, parameter in gpt2.model.named_parameters():
        parameter.requires_grad_(name in moving)
    before = weights(gpt2.model)
    _, moments = run(gpt2, data, SETTINGS)
    changed = {n for n, p in weights(gpt2.model).items() if not torch.equal(before[n], p)}
    assert changed == moving
    assert len(changed) == 1
    kinds = ("step", "exp_avg", "exp_avg_sq")
    names = {f"{kind}/{name}" for kind in kinds for name in moving}
    assert set(moments) == names | {"step", "samples_seen"}


def test_gradients_are_clipped(tiny: Make, public: list[Sample]) -> None:
    """Plain first moments after one step: a tenth of the gradient."""
    norms = []
    for largest in (1e9, 0.01):
        model = tiny("gpt2")
        settings = replace(SETTINGS, steps=1, max_grad_norm=largest)
        _, moments = run(model, model.encode(public), settings)
        square = sum(float((v**2).sum()) for n, v in moments.items() if n.startswith("exp_avg/"))
        norms.append(10 * math.sqrt(square))
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_numbers_that_are_not_finite_end_it_with_the_last_good_weights(
    what: str, gpt2: Tiny, data: TokenizedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(gpt2, data, SETTINGS, seed=0)
    for _ in range(2):
        training.advance()
    before, state = weights(gpt2.model), training.state()

    def broken(*arguments: Any, **options: Any) -> Any:
        loss, replayed = batch_losses(*arguments, **options)
        if what == "gradient":  # finite, with a slope that is not
            return loss + torch.sqrt(loss * 0), replayed
        return loss * math.inf, replayed

    monkeypatch.setattr("fedfuse.distillation.training.batch_losses", broken)
    with pytest.raises(NotFinite, match=r"training step 3: expected finite numbers, got loss"):
        training.advance()
    assert all(torch.equal(before[name], new) for name, new in weights(gpt2.model).items())
    after = training.state()
    assert all(np.array_equal(state[name], value) for name, value in after.items())
    assert state.keys() == after.keys()


def test_replay_adds_its_loss(tiny: Make, public: list[Sample]) -> None:
    model = tiny("opt")
    old, new = model.encode(public[:6]), model.encode(public[6:])
    both = new.batch(np.arange(6)), old.batch(np.arange(6))
    teacher = one_hot(new, 5)
    model.model.train()
    right = batch_losses(model, both[0], teacher, Objective(0.3))[0]
    right = right + batch_losses(model, both[1], None, Objective())[0]
    settings = replace(SETTINGS, steps=1, batch_size=6)
    options = {"teacher": teacher, "label_weight": 0.3}
    loss, _ = run(model, new, settings, replay=old, **options)
    assert loss == pytest.approx(right.item(), rel=1e-5)
    alone, _ = run(tiny("opt"), new, settings, **options)
    assert loss > alone + 0.5


@pytest.mark.parametrize("max_tokens", [1, 40, 70, 9999])
@pytest.mark.parametrize("known", [True, False])
def test_parts_of_a_batch_add_up(
    tiny: Make,
    public: list[Sample],
    max_tokens: int,
    known: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Samples have different numbers of rows, and one has none: a mean of means would differ."""
    if not known:
        monkeypatch.setattr("fedfuse.models.forward.find_head", lambda *_: None)
    widths: list[tuple[int, int]] = []
    found = []
    for tokens in (0, max_tokens):
        model = tiny("opt")
        data = model.encode([*public[:4], Sample("a prompt alone", "")])
        settings = replace(SETTINGS, steps=1, batch_size=5, max_tokens=tokens)
        replay = model.encode([Sample("", " ".join(s.text for s in public[4:6])), *public[6:]])
        watched = model.model.get_input_embeddings()
        widths.clear()
        watched.register_forward_hook(lambda _, given, __: widths.append(tuple(given[0].shape)))
        loss, moments = run(
            model, data, settings, teacher=one_hot(data, 5), label_weight=0.3, replay=replay
        )
        found.append((loss, moments))
    # (Trying the head on the first batch adds small ones.)
    assert all(samples == 1 or samples * width <= max_tokens for samples, width in widths)
    assert len(widths) >= (10 if max_tokens == 1 else 1)
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for name, right in found[0][1].items():
        np.testing.assert_allclose(found[1][1][name], right, rtol=1e-3, atol=1e-6)


def test_replay_keeps_what_was_known(tiny: Make, public: list[Sample]) -> None:
    """A teacher who says one token everywhere costs the old samples less when they are replayed."""
    after = []
    for replayed in (False, True):
        model = tiny("gpt2")
        old, new = model.encode(public[:6]), model.encode(public[6:])
        settings = replace(SETTINGS, steps=15)
        replay = old if replayed else None
        run(model, new, settings, teacher=one_hot(new, 5), label_weight=0.0, replay=replay)
        after.append(sample_nll(model, old).sum())
    assert after[1] < 0.8 * after[0]


def test_the_student_learns_from_its_teacher(gpt2: Tiny, data: TokenizedDataset) -> None:
    teacher = one_hot(data, 7)
    loss, _ = run(
        gpt2,
        data,
        replace(SETTINGS, steps=25, learning_rate=2e-2),
        teacher=teacher,
        label_weight=0.0,
    )
    batch = data.batch(np.arange(len(data)))
    with torch.no_grad():
        logits = gpt2.model(input_ids=batch.input_ids).logits
    assert (logits[batch.sample, batch.row].argmax(1) == 7).all()
    assert loss < 0.5


def test_teacher_rows_follow_the_batch(gpt2: Tiny, data: TokenizedDataset) -> None:
    """A teacher of the labels themselves teaches the label loss, in whatever order batches come."""
    teacher = replace(one_hot(data, 0), indices=data.rows.token[:, None])
    batch = data.batch(np.array([5, 0, 9]))
    taught = batch_losses(gpt2, batch, teacher, Objective(0.0))[0]
    labelled = batch_losses(gpt2, batch, None, Objective())[0]
    assert taught.item() == pytest.approx(labelled.item(), rel=1e-6)


def test_teacher_rows_sum_to_one() -> None:
    """Knowledge that went over the wire in half precision does not quite."""
    logs = np.log(np.array([[0.5, 0.3], [0.7, 0.2], [0.1, 0.1]])).astype(np.float32)
    logs[2] = -np.inf  # a row that nobody teaches
    tail_logprob = np.array([np.log(0.204), -np.inf, -np.inf], dtype=np.float32)
    teacher = SparseDistribution(
        np.array([[1, 2], [3, 4], [0, 0]]), logs, tail_logprob, np.ones(3, np.float32)
    )
    targets = DistillationTargets.from_sparse(teacher[np.array([2, 0, 1])], "cpu")
    np.testing.assert_allclose(targets.probs.sum(1) + targets.tail, [0, 1, 1], atol=1e-6)
    np.testing.assert_allclose(targets.probs[1], [0.5 / 1.004, 0.3 / 1.004], rtol=1e-5)
    assert targets.indices.tolist() == [[0, 0], [1, 2], [3, 4]]
    assert targets.tail[2] == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_with_and_without_a_head_of_its_own(
    tiny: Make, public: list[Sample], architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused, or over logits of the whole batch: the same loss and gradients of all weights."""
    model = tiny(architecture)
    data = model.encode(public)
    teacher = replace(
        one_hot(data, 5), tail_logprob=np.full(len(data.rows.token), -1.0, np.float32)
    )
    found = []
    for known in (True, False):
        if not known:
            monkeypatch.setattr("fedfuse.models.forward.find_head", lambda *_: None)
        model.model.zero_grad()
        batch = data.batch(np.arange(5))
        loss, _ = batch_losses(model, batch, teacher, Objective(0.3, "reverse-kl", 2.0))
        assert ("Fused" in type(loss.grad_fn).__name__) == known
        loss.backward()
        gradients = {
            name: parameter.grad.clone()
            for name, parameter in model.model.named_parameters()
            if parameter.grad is not None
        }
        found.append((loss.item(), gradients))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert found[0][1].keys() == found[1][1].keys()
    for name, right in found[1][1].items():
        torch.testing.assert_close(found[0][1][name], right, rtol=1e-4, atol=1e-5)


def test_settings_say_how_to_compare(gpt2: Tiny, data: TokenizedDataset) -> None:
    teacher = one_hot(data, 5)
    losses = []
    for objective in (Objective(0), Objective(0, "reverse-kl"), Objective(0, temperature=4.0)):
        settings = replace(SETTINGS, steps=1, learning_rate=1e-9, objective=objective)
        losses.append(run(gpt2, data, settings, teacher=teacher)[0])
    assert len({round(loss, 3) for loss in losses}) == 3


def test_rows_of_the_head_beyond_the_vocabulary_are_cut_off(
    gpt2: Tiny, data: TokenizedDataset
) -> None:
    """A padded row with a huge logit would otherwise take all the mass."""
    batch = data.batch(np.arange(3))
    vocab = gpt2.tokenizer.vocab_size
    before = batch_losses(gpt2, batch, None, Objective())[0].item()
    with torch.no_grad():
        gpt2.model.get_output_embeddings().weight[vocab:] += 100
    assert gpt2.model.get_output_embeddings().weight.shape[0] > vocab
    assert batch_losses(gpt2, batch, None, Objective())[0].item() == before


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("MPS: out of memory")]
)
@pytest.mark.parametrize("configured", [0, 9999])
def test_a_step_that_does_not_fit_is_done_in_smaller_parts(
    error: RuntimeError,
    configured: int,
    tiny: Make,
    public: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same step, the same loss; the next phase begins with the size that fits."""
    settings = replace(SETTINGS, steps=3, batch_size=5, max_tokens=configured)
    fits, widths = 90, []
    losses = batch_losses

    def on_a_small_device(model: Tiny, batch: Any, *more: Any, **rest: Any) -> Any:
        widths.append(batch.input_ids.numel())
        if widths[-1] > fits:
            raise error
        return losses(model, batch, *more, **rest)

    def begin(state: TrainingState | None = None) -> Training:
        student = adapted(tiny, dropout=0.0)
        return Training(student, student.encode(public), settings, seed=3, state=state)

    whole = begin()
    wanted = [whole.advance() for _ in range(3)]
    assert "max-tokens" not in whole.state()
    with monkeypatch.context() as patch:
        patch.setattr("fedfuse.distillation.training.batch_losses", on_a_small_device)
        training = begin()
        assert [training.advance() for _ in range(3)] == pytest.approx(wanted, rel=1e-5)
        kept = training.state()
        assert 0 < int(kept["max-tokens"]) < widths[0]
        widths.clear()
        again = begin(kept)
        again.advance()
        assert max(widths) <= fits
        fits = 3
        with pytest.raises(FedfuseError, match=r"out of memory with a single sample of \d+ tokens"):
            again.advance()
    with monkeypatch.context() as patch:
        patch.setattr("fedfuse.distillation.training.batch_losses", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            begin().advance()

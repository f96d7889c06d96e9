"""What is held, how firmly, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedfuse.config.training import TrainingConfig
from fedfuse.data.sample import Sample
from fedfuse.distillation.ewc import (
    EWCPenalty,
    draw_labels,
    estimate_ewc,
    fisher_information,
)
from fedfuse.distillation.loss import DistillationTargets
from fedfuse.distillation.optimizer_state import TrainingState
from fedfuse.distillation.training import Training
from fedfuse.knowledge.extract import extract
from fedfuse.sparse import SparseDistribution
from fedfuse.tokenizers.dataset import TokenizedDataset
from tests.conftest import Tiny
from tests.distillation.phases import SETTINGS, Make, adapted, one_hot, run, weighted, weights

HELD = replace(SETTINGS, ewc=10.0)


def test_information_is_the_sum_of_squared_gradients() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    inputs = torch.tensor([[1.0, 2.0], [3.0, 0.5], [0.0, 1.0]])
    found = fisher_information({"w": weight}, ((weight * x).sum() ** 2 for x in inputs))
    right = sum((2 * (weight.detach() * x).sum() * x) ** 2 for x in inputs)
    assert isinstance(right, Tensor)
    torch.testing.assert_close(found["w"], right)


def test_drawn_labels_need_no_gradient_per_sample() -> None:
    """Batches of a softmax regression, many times over, against the sum over samples and labels."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(3, 4))
    inputs = torch.randn(6, 3)
    right = torch.zeros_like(weight)
    for x in inputs:
        for label, p in enumerate((x @ weight).softmax(0).tolist()):
            [gradient] = torch.autograd.grad(-(x @ weight).log_softmax(0)[label], [weight])
            right += p * gradient**2
    generator = torch.Generator().manual_seed(0)
    total, times = torch.zeros_like(weight), 4000
    for _ in range(times):
        scores = inputs @ weight
        label = torch.multinomial(scores.softmax(1), 1, generator=generator)
        loss = -scores.log_softmax(1).gather(1, label).sum()
        total += fisher_information({"w": weight}, [loss])["w"]
    torch.testing.assert_close(total / times, right, rtol=0.15, atol=0.02)


def test_labels_are_drawn_from_the_teacher() -> None:
    """By its probabilities; the label stays for the tail, and where nobody teaches."""
    rows = 6000
    targets = DistillationTargets(
        torch.tensor([[4, 9]]).expand(rows, 2),
        torch.tensor([[0.6, 0.3]]).expand(rows, 2).clone(),
        torch.full((rows,), 0.1),
        torch.ones(rows),
    )
    targets.weight[:1000] = 0
    targets.probs[:1000] = 0
    label = torch.arange(rows) + 10
    drawn = draw_labels(targets, label, torch.Generator().manual_seed(0))
    assert torch.equal(drawn[:1000], label[:1000])
    found = drawn[1000:]
    shares = [float(part.float().mean()) for part in (found == 4, found == 9, found > 9)]
    assert shares == pytest.approx([0.6, 0.3, 0.1], abs=0.03)
    assert torch.equal(found[found > 9], label[1000:][found > 9])


def test_the_pull_by_hand() -> None:
    named = {"a": nn.Parameter(torch.zeros(2)), "b": nn.Parameter(torch.zeros(2))}
    information = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([0.0, 0.0])}
    held = EWCPenalty.from_fisher(named, information, strength=2.0)
    for parameter in named.values():
        parameter.data.fill_(1.0)
    held.apply(named, 0.1)  # the mean information is 1
    torch.testing.assert_close(named["a"].data, torch.tensor([0.4, 0.8]))
    assert named["b"].tolist() == [1.0, 1.0]
    held.apply(named, 1e6)
    assert named["a"].tolist() == [0.0, 0.0]  # and no further
    nothing = EWCPenalty.from_fisher(
        named, {name: 0 * value for name, value in information.items()}, 2.0
    )
    nothing.apply(named, 1.0)
    assert named["b"].tolist() == [1.0, 1.0]


def taught(model: Tiny, data: TokenizedDataset, own: np.ndarray | None) -> SparseDistribution:
    """A teacher who says one token on the second half, and on the first what the model says."""
    known = extract(model, data, 4)
    teacher = one_hot(data, 5)
    half = data.rows.offsets[len(data) // 2]
    indices = np.repeat(teacher.indices, 4, axis=1)
    logprobs = np.full(indices.shape, -np.inf, dtype=np.float32)
    logprobs[:, 0] = 0
    indices[:half], logprobs[:half] = known.indices[:half], known.logprobs[:half]
    tail_logprob = teacher.tail_logprob.copy()
    tail_logprob[:half] = np.log1p(-np.exp(known.logprobs[:half]).sum(1).clip(0, 1 - 1e-6))
    return SparseDistribution(indices, logprobs, tail_logprob, teacher.weight, own)


def phase(tiny: Make, public: list[Sample], settings: TrainingConfig, own: float | None) -> Tiny:
    model = adapted(tiny, dropout=0.0)
    data = model.encode(public)
    trust = None if own is None else np.zeros(len(data), dtype=np.float32)
    if trust is not None:
        trust[: len(data) // 2] = own
    run(model, data, settings, teacher=taught(model, data, trust), label_weight=0.0)
    return model


def test_what_nobody_trusts_is_not_held(tiny: Make, public: list[Sample]) -> None:
    plain = weights(phase(tiny, public, SETTINGS, 1.0).model)
    for own in (None, 0.0):
        found = weights(phase(tiny, public, HELD, own).model)
        assert all(torch.equal(plain[name], value) for name, value in found.items())
    held = weights(phase(tiny, public, HELD, 1.0).model)
    assert not all(torch.equal(plain[name], value) for name, value in held.items())


def test_what_is_trusted_changes_less(tiny: Make, public: list[Sample]) -> None:
    """The model's word on the kept half, of which only a few samples are taught."""
    start = adapted(tiny, dropout=0.0)
    data = start.encode(public)
    rows = np.arange(data.rows.offsets[len(data) // 2])

    def word(model: Tiny) -> Tensor:
        batch = data.batch(np.arange(len(data) // 2))
        with torch.no_grad():
            logits = model.model(input_ids=batch.input_ids).logits
        return logits[batch.sample, batch.row][rows].log_softmax(1)

    def change(settings: TrainingConfig) -> float:
        after = word(phase(tiny, public, settings, 1.0))
        before = word(start)
        return float((before.exp() * (before - after)).sum(1).mean())

    steps = replace(SETTINGS, steps=12)
    assert change(replace(steps, ewc=300.0)) < 0.8 * change(steps)


def test_trust_decides_what_counts(tiny: Make, public: list[Sample]) -> None:
    """No sample of no trust is drawn; the strength is the trusted share's."""
    model = adapted(tiny, dropout=0.0)
    data = model.encode(public)
    named = {n: p for n, p in model.model.named_parameters() if p.requires_grad}
    options = {"seed": 1, "max_tokens": 0}

    def held(own: np.ndarray) -> EWCPenalty:
        teacher = taught(model, data, own.astype(np.float32))
        found = estimate_ewc(model, named, data, teacher, HELD, **options)
        assert found is not None
        return found

    def mean(found: EWCPenalty) -> float:
        values = torch.cat([value.flatten() for value in found.decay.values()])
        return float(values.mean())

    whole, half = np.ones(len(data)), np.arange(len(data)) < len(data) // 2
    assert mean(held(whole)) == pytest.approx(10.0, rel=1e-4)
    assert mean(held(half)) == pytest.approx(5.0, rel=1e-4)
    assert mean(held(0 * whole)) == 0


def test_parts_and_stops_change_nothing(tiny: Make, public: list[Sample]) -> None:
    """A phase stopped in the middle holds what it held; smaller parts hold nearly the same."""

    def begin(model: Tiny, state: TrainingState | None = None) -> Training:
        data = model.encode(public)
        own = np.linspace(0, 1, len(data), dtype=np.float32)
        start = adapted(tiny, dropout=0.0)
        return Training(
            model,
            data,
            weighted(HELD, 0.3),
            seed=3,
            teacher=taught(start, data, own),
            state=state,
        )

    straight, first, second = (adapted(tiny, dropout=0.0) for _ in range(3))
    training = begin(straight)
    losses = [training.advance() for _ in range(6)]
    early = begin(first)
    found = [early.advance() for _ in range(2)]
    kept = {name: value.copy() for name, value in early.state().items()}
    assert any(name.startswith("decay/") for name in kept)
    second.model.load_state_dict(first.model.state_dict())
    late = begin(second, kept)
    found += [late.advance() for _ in range(4)]
    assert found == losses
    right = weights(straight.model)
    assert all(torch.equal(right[n], p) for n, p in weights(second.model).items())
    # The next phase begins with other weights, and holds those.
    assert not any(name.startswith(("decay/", "anchor/")) for name in late.state())

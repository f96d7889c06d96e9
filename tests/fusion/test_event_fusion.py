"""Teachers over events beside teachers over tokens: weights, files, statistics."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from fedfuse.events import EventDistribution, TeacherTargets
from fedfuse.fusion.disk_buffer import DiskBuffer
from fedfuse.fusion.event_mixing import fuse_rows, mix_events
from fedfuse.fusion.fuser import AlignedTeacher
from fedfuse.fusion.mixing import mix
from fedfuse.fusion.teacher_stats import compute_stats
from fedfuse.sparse import LEAST_LOGPROB
from tests.distillation.test_event_targets import random_events
from tests.fusion.test_mixing import VOCAB, random_candidate
from tests.oracles.events import joined

ROWS, K = 30, 3


def events(rng: np.random.Generator) -> EventDistribution:
    return random_events(rng, ROWS, K, VOCAB)[0]


def equal(mine: EventDistribution, right: EventDistribution) -> None:
    for field in fields(EventDistribution):
        np.testing.assert_array_equal(getattr(mine, field.name), getattr(right, field.name))


def test_everybody_keeps_a_distribution_and_a_weight() -> None:
    rng = np.random.default_rng(0)
    tokens = [random_candidate(rng, ROWS, K) for _ in range(2)]
    others = [events(rng), events(rng)]
    weights = rng.choice([0, 0.4, 0.9], size=(ROWS, 4)).astype(np.float32)
    fused = fuse_rows([tokens[0], others[0], tokens[1], others[1]], weights, K)
    assert isinstance(fused, TeacherTargets)
    mixed = mix(tokens, weights[:, [0, 2]], K)
    np.testing.assert_array_equal(fused.tokens.indices, mixed.indices)
    found = fused.events.distribution
    for row in range(ROWS):
        wanted = [
            (other, weights[row, column] * other.weight[row])
            for column, other in ((1, others[0]), (3, others[1]))
        ]
        scale = 1 / max(1.0, mixed.weight[row] + sum(w for _, w in wanted))
        assert fused.tokens.weight[row] == pytest.approx(mixed.weight[row] * scale)
        mine = range(fused.events.offsets[row], fused.events.offsets[row + 1])
        wanted = [(other, w) for other, w in wanted if w > 0]
        assert len(mine) == len(wanted)
        for place, (other, weight) in zip(mine, wanted, strict=True):
            assert found.weight[place] == pytest.approx(weight * scale)
            for slot in range(K):
                a, b = found.start[place, slot], found.stop[place, slot]
                c, d = other.start[row, slot], other.stop[row, slot]
                mine_set = found.orders[found.order[place], a:b].tolist()
                assert mine_set == other.orders[other.order[row], c:d].tolist()
            np.testing.assert_array_equal(found.logprobs[place], other.logprobs[row])


def test_equal_tokenizers_are_mixed_as_without_events() -> None:
    rng = np.random.default_rng(1)
    tokens = [random_candidate(rng, ROWS, K) for _ in range(3)]
    weights = rng.random((ROWS, 3)).astype(np.float32)
    fused, mixed = fuse_rows(tokens, weights, K), mix(tokens, weights, K)
    assert type(fused) is type(mixed)
    np.testing.assert_array_equal(fused.logprobs, mixed.logprobs)  # type: ignore[union-attr]
    np.testing.assert_array_equal(fused.weight, mixed.weight)  # type: ignore[union-attr]


def test_events_come_back_from_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    whole, own = events(rng), random_candidate(rng, ROWS, K)
    label, loss = rng.integers(VOCAB, size=ROWS), np.zeros(2, dtype=np.float32)
    teacher = AlignedTeacher(compute_stats(whole, own[:2], own, label, VOCAB, loss), whole)
    weights = np.full((ROWS, 2), 0.5, dtype=np.float32)
    with DiskBuffer(tmp_path) as buffer:
        kept = buffer.put(teacher)
        equal(kept.distributions[3:9], whole[3:9])  # type: ignore[arg-type]
        mine = fuse_rows([own, kept.distributions], weights, K)
        right = fuse_rows([own, whole], weights, K)
        equal(mine.events.distribution, right.events.distribution)  # type: ignore[union-attr]


def test_evidence_is_in_the_teachers_own_terms() -> None:
    rng = np.random.default_rng(3)
    whole, own = events(rng), random_candidate(rng, ROWS, K)
    label, loss = rng.integers(VOCAB, size=ROWS), np.zeros(2, dtype=np.float32)
    stats = compute_stats(whole, own[:2], own, label, VOCAB, loss)
    for row in range(ROWS):
        order = whole.orders[whole.order[row]]
        spans = zip(whole.start[row], whole.stop[row], whole.logprobs[row], strict=True)
        said = [(set(order[a:b].tolist()), float(np.exp(p))) for a, b, p in spans if b > a]
        tail = float(np.exp(whole.tail_logprob[row]))
        if not whole.weight[row]:
            assert stats.label_logprob[row] == 0
            continue
        others = max(1, VOCAB - sum(len(tokens) for tokens, _ in said))
        at_label = next((p for tokens, p in said if int(label[row]) in tokens), tail / others)
        assert stats.label_logprob[row] == pytest.approx(
            max(np.log(at_label), LEAST_LOGPROB), abs=1e-5
        )
        mass = np.exp(own.logprobs[row])
        mine = [
            sum(m for t, m in zip(own.indices[row], mass, strict=True) if int(t) in tokens)
            for tokens, _ in said
        ]
        logs = [max(float(np.log(m)) if m > 0 else -np.inf, LEAST_LOGPROB) for m in mine]
        rest = max(1 - sum(np.exp(logs)), np.exp(LEAST_LOGPROB))
        expected = -sum(p * q for (_, p), q in zip(said, logs, strict=True)) - tail * np.log(rest)
        assert stats.cross_entropy_to_student[row] == pytest.approx(expected, abs=1e-4)


def test_teachers_of_one_tokenizer_are_mixed() -> None:
    """As sets of tokens: the mixture of those that are equal, disjoint or nested."""
    rng = np.random.default_rng(4)
    one = events(rng)
    # The same events in part, with other probabilities, and one that is inside another.
    mass = rng.dirichlet(np.ones(K + 1), size=ROWS)
    logs = np.where(one.stop > one.start, np.log(mass[:, :K]), -np.inf).astype(np.float32)
    tail = np.log(1 - np.exp(logs).sum(1)).astype(np.float32)
    stop = one.stop.copy()
    wide = one.stop[:, 0] > one.start[:, 0] + 1
    stop[wide, 0] -= 1
    other = replace(one, stop=stop, logprobs=logs, tail_logprob=tail, weight=one.weight[::-1])
    weights = rng.choice([0, 0.4, 0.6], size=(ROWS, 2)).astype(np.float32)
    found = mix_events([one, other], weights, 2 * K)
    for row in range(ROWS):
        usable = [weights[row, 0] * one.weight[row], weights[row, 1] * other.weight[row]]
        assert found.weight[row] == pytest.approx(sum(usable))
        if not sum(usable):
            continue
        said = [
            (frozenset(range(a, b)), share / sum(usable) * float(np.exp(p)))
            for teacher, share in zip((one, other), usable, strict=True)
            for a, b, p in zip(
                teacher.start[row], teacher.stop[row], teacher.logprobs[row], strict=True
            )
            if b > a
        ]
        spans = zip(found.start[row], found.stop[row], found.logprobs[row], strict=True)
        mine = {frozenset(range(a, b)): float(np.exp(p)) for a, b, p in spans if b > a}
        assert mine == pytest.approx(dict(joined(said)), rel=1e-5)
        assert np.exp(found.tail_logprob[row]) == pytest.approx(1 - sum(mine.values()), abs=1e-6)

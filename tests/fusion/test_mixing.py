"""Fusion equals a mixture of dense vectors."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfuse.config.training import Objective
from fedfuse.distillation.loss import DistillationTargets, distillation_loss
from fedfuse.fusion.mixing import mix
from fedfuse.sparse import SparseDistribution, sum_duplicates
from tests.oracles import fusion as oracle

VOCAB = 9


def candidate(ids: object, probs: object, weight: object = None) -> SparseDistribution:
    """What the probabilities leave of one is the tail; a row of no mass has no teacher."""
    mass = np.array(probs, dtype=np.float64)
    with np.errstate(divide="ignore"):
        logs = np.log(mass).astype(np.float32)
        rest = np.log(np.maximum(1 - mass.sum(1), 0)).astype(np.float32)
    usable = np.ones(len(mass)) if weight is None else np.array(weight)
    return SparseDistribution(np.array(ids), logs, rest, usable.astype(np.float32))


def random_candidate(rng: np.random.Generator, rows: int, k: int) -> SparseDistribution:
    """Distinct ids; some slots unused (id 0, as projection leaves them), some rows no teacher's."""
    ids = np.argsort(rng.random((rows, VOCAB)), axis=1)[:, :k]
    mass = np.sort(rng.dirichlet(np.ones(k + 1), size=rows)[:, :k], axis=1)[:, ::-1].copy()
    unused = rng.random(rows) < 0.3
    mass[unused, -1], ids[unused, -1] = 0, 0
    return candidate(ids, mass, rng.random(rows) < 0.7)


def as_dictionary(teacher: SparseDistribution, row: int) -> dict[int, float]:
    kept: dict[int, float] = {}
    for token, logprob in zip(teacher.indices[row], teacher.logprobs[row], strict=True):
        if np.isfinite(logprob):
            assert int(token) not in kept
            kept[int(token)] = float(np.exp(logprob))
    return kept


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 12))
def test_equals_the_dense_mixture(seed: int, number: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    rows = 5
    candidates = [random_candidate(rng, rows, int(rng.integers(1, 6))) for _ in range(number)]
    weights = rng.choice([0, 0, 0.3, 1], size=(rows, number)).astype(np.float32)
    teacher = mix(candidates, weights, k)
    for row in range(rows):
        parts = [
            (
                c.indices[row].tolist(),
                c.logprobs[row].tolist(),
                float(c.tail_logprob[row]),
                c.weight[row],
            )
            for c in candidates
        ]
        kept, outside, weight = oracle.fuse_row(parts, weights[row].tolist(), k)
        assert teacher.weight[row] == pytest.approx(weight)
        found = as_dictionary(teacher, row)
        # Of entries of equal mass either may be the last to be kept.
        np.testing.assert_allclose(sorted(found.values()), sorted(kept.values()), rtol=1e-5)
        assert np.exp(teacher.tail_logprob[row]) == pytest.approx(outside, abs=1e-5)
        if weight:
            assert sum(found.values()) + outside == pytest.approx(1, abs=1e-5)
            assert set(found) == set(kept) or len(kept) == k
        values = teacher.logprobs[row]
        assert (values[1:] <= values[:-1]).all()


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    candidates = [random_candidate(rng, 7, 3) for _ in range(3)]
    weights = rng.random((7, 3)).astype(np.float32)
    whole = mix(candidates, weights, 4)
    monkeypatch.setattr("fedfuse.fusion.mixing._ROWS", 3)
    for mine, right in zip(astuple(mix(candidates, weights, 4)), astuple(whole), strict=True):
        np.testing.assert_array_equal(mine, right)
    none = [candidate(np.empty((0, 2), int), np.empty((0, 2)))]
    assert mix(none, np.empty((0, 1), np.float32), 2).indices.shape == (0, 2)


def test_by_hand() -> None:
    """0.6 and 0.4 of two who agree on token 3; token 5 falls to the tail."""
    first = candidate([[3, 1]], [[0.5, 0.3]])
    second = candidate([[5, 3]], [[0.2, 0.1]])
    teacher = mix([first, second], np.array([[0.6, 0.4]], dtype=np.float32), k=2)
    assert teacher.indices.tolist() == [[3, 1]]
    np.testing.assert_allclose(np.exp(teacher.logprobs), [[0.34, 0.18]], rtol=1e-6)
    np.testing.assert_allclose(
        np.exp(teacher.tail_logprob), [0.6 * 0.2 + 0.4 * 0.7 + 0.08], rtol=1e-6
    )
    assert teacher.weight.tolist() == [1]
    assert (
        teacher.logprobs.dtype == teacher.tail_logprob.dtype == teacher.weight.dtype == np.float32
    )
    assert teacher.indices.dtype == np.int64


def test_candidates_without_a_row_leave_their_share_to_the_others() -> None:
    """And the row's weight is the trust that is left."""
    first = candidate([[3]], [[0.5]])
    absent = candidate([[0]], [[0.0]], [0])
    teacher = mix([first, absent], np.array([[0.25, 0.75]], dtype=np.float32), k=1)
    assert teacher.indices.tolist() == [[3]]
    assert np.exp(teacher.logprobs[0, 0]) == pytest.approx(0.5)
    assert teacher.weight.tolist() == [0.25]


def test_a_row_that_nobody_teaches() -> None:
    absent = candidate([[0, 0]], [[0.0, 0.0]], [0])
    present = candidate([[4, 2]], [[0.7, 0.2]])
    teacher = mix([absent, present], np.array([[1.0, 0.0]], dtype=np.float32), k=2)
    assert teacher.weight.tolist() == [0]
    targets = DistillationTargets.from_sparse(teacher[np.array([0])], "cpu")
    logits = torch.randn(1, VOCAB, requires_grad=True)
    distillation_loss(logits, torch.tensor([1]), targets, Objective(0.0)).backward()
    assert (logits.grad == 0).all()


def test_trust_above_one_counts_as_one() -> None:
    both = [candidate([[3]], [[0.5]]), candidate([[4]], [[0.5]])]
    teacher = mix(both, np.array([[2.0, 2.0]], dtype=np.float32), k=2)
    assert teacher.weight.tolist() == [1]
    np.testing.assert_allclose(np.exp(teacher.logprobs), [[0.25, 0.25]], rtol=1e-6)


def test_fewer_entries_than_k() -> None:
    """What is not there is not made up."""
    teacher = mix([candidate([[3, 1]], [[0.5, 0.3]])], np.ones((1, 1), dtype=np.float32), k=16)
    assert as_dictionary(teacher, 0) == pytest.approx({3: 0.5, 1: 0.3})
    assert np.exp(teacher.tail_logprob[0]) == pytest.approx(0.2)


def test_unused_slots_repeat_a_kept_token() -> None:
    """Or the student would be taught that what the others know, or token 0, is impossible.

    The chosen teacher keeps two tokens, one slot of its is unused; the other is not trusted here.
    """
    chosen = candidate([[3, 1, 0]], [[0.5, 0.3, 0.0]])
    other = candidate([[6, 7, 8]], [[0.4, 0.3, 0.2]])
    teacher = mix([other, chosen], np.array([[0.0, 1.0]], dtype=np.float32), k=4)
    assert set(teacher.indices[0].tolist()) == {3, 1}
    logits = torch.tensor([[0.5, 1, 2, 3, 1, 2, 2, 3, 1.0]])
    targets = DistillationTargets.from_sparse(teacher[np.array([0])], "cpu")
    loss = distillation_loss(logits, torch.tensor([0]), targets, Objective(0.0))
    student = torch.softmax(logits[0].double(), 0)
    bucket = 1 - student[3] - student[1]
    right = -0.5 * student[3].log() - 0.3 * student[1].log() - 0.2 * bucket.log()
    assert loss.item() == pytest.approx(right.item(), rel=1e-5)


def test_merge_duplicates() -> None:
    indices = np.array([[5, 2, 5, 2, 2], [1, 2, 3, 4, 5]])
    mass = np.array([[0.1, 0.2, 0.3, 0.05, 0.0], [0.5, 0.4, 0.3, 0.2, 0.1]])
    merged, summed = sum_duplicates(indices, mass)
    assert merged.tolist() == [[2, 2, 2, 5, 5], [1, 2, 3, 4, 5]]
    np.testing.assert_allclose(summed, [[0.25, 0, 0, 0.4, 0], mass[1]])


def test_no_rows() -> None:
    empty = candidate(np.zeros((0, 2), dtype=np.int64), np.zeros((0, 2)))
    teacher = mix([empty, empty], np.zeros((0, 2), dtype=np.float32), k=3)
    assert len(teacher.weight) == len(teacher.indices) == 0

"""Evidence equals what dense distributions say."""

from __future__ import annotations

import numpy as np
import pytest

from fedfuse.fusion.teacher_stats import compute_stats, stack_stats, token_logprobs
from fedfuse.sparse import SparseDistribution
from tests.fusion.example_stats import made_up
from tests.fusion.test_mixing import VOCAB, random_candidate
from tests.oracles import gate as oracle

OF_FIRST = ("entropy", "margin", "kept_mass")
OF_ROWS = ("label_logprob", "cross_entropy_to_student")


def kept_of(part: SparseDistribution, row: int) -> dict[int, float]:
    return {
        int(token): float(np.exp(logprob))
        for token, logprob in zip(part.indices[row], part.logprobs[row], strict=True)
        if np.isfinite(logprob)
    }


def dense_of(part: SparseDistribution, row: int) -> dict[int, float]:
    kept, tail = kept_of(part, row), float(np.exp(part.tail_logprob[row]))
    return {t: kept.get(t, tail / max(VOCAB - len(kept), 1)) for t in range(VOCAB)}


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_oracle(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = 40
    own = random_candidate(rng, rows, 5)
    part = random_candidate(rng, rows, int(rng.integers(1, 7)))
    label = rng.integers(VOCAB, size=rows)
    loss = rng.random(3).astype(np.float32)
    first = random_candidate(rng, 3, 4)
    found = compute_stats(part, first, own, label, VOCAB, loss)
    for row in range(rows):
        tail = float(np.exp(part.tail_logprob[row]))
        right = oracle.row_stats(
            kept_of(part, row), tail, int(label[row]), dense_of(own, row), VOCAB
        )
        for name in OF_ROWS:
            value = getattr(found, name)[row]
            expected = right[name] if part.weight[row] else 0
            assert value == pytest.approx(expected, abs=2e-5), name
            assert value.dtype == np.float32
    for row in range(3):
        tail = float(np.exp(first.tail_logprob[row]))
        right = oracle.row_stats(kept_of(first, row), tail, 0, dense_of(first, row), VOCAB)
        for name in OF_FIRST:
            expected = right[name] if first.weight[row] else 0
            assert getattr(found, name)[row] == pytest.approx(expected, abs=2e-5), name
            assert getattr(found, name).dtype == np.float32
    np.testing.assert_array_equal(found.usable, part.weight > 0)
    assert np.isnan(found.context_loss).all()
    assert found.loss is loss


def test_a_label_that_is_not_kept_has_a_share_of_the_rest() -> None:
    part = SparseDistribution(
        np.array([[3, 1]]),
        np.log(np.array([[0.5, 0.3]], dtype=np.float32)),
        np.log(np.array([0.2], dtype=np.float32)),
        np.ones(1, dtype=np.float32),
        "student",
    )
    found = token_logprobs(part, np.array([[3, 1, 7]]), vocab_size=10)
    np.testing.assert_allclose(np.exp(found), [[0.5, 0.3, 0.2 / 8]], rtol=1e-5)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    own, label = random_candidate(rng, 11, 4), rng.integers(VOCAB, size=11)
    whole = compute_stats(own, own[:1], own, label, VOCAB, np.zeros(1, np.float32))
    monkeypatch.setattr("fedfuse.fusion.teacher_stats._ROWS", 3)
    parts = compute_stats(own, own[:1], own, label, VOCAB, np.zeros(1, np.float32))
    for name in OF_ROWS:
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_candidates_side_by_side() -> None:
    rng = np.random.default_rng(1)
    parts = [random_candidate(rng, 5, 3) for _ in range(3)]
    label, offsets = rng.integers(VOCAB, size=5), np.array([0, 2, 5])
    told = [
        compute_stats(
            part,
            part[offsets[:-1]],
            parts[0],
            label,
            VOCAB,
            np.full(2, n, np.float32),
            np.full(2, n, np.float32),
        )
        for n, part in enumerate(parts)
    ]
    stats = stack_stats(told, offsets)
    assert (stats.samples, stats.candidates) == (2, 3)
    assert stats.loss.tolist() == stats.context_loss.tolist() == [[0, 1, 2]] * 2
    assert stats.sample_of_row.tolist() == [0, 0, 1, 1, 1]
    for n, one in enumerate(told):
        np.testing.assert_array_equal(stats.entropy[:, n], one.entropy)


def test_means_and_rewards_are_over_usable_rows() -> None:
    stats = made_up(np.random.default_rng(2), samples=20, candidates=3)
    label_likelihood, available = stats.label_likelihood, stats.available
    for i in range(20):
        rows = slice(stats.offsets[i], stats.offsets[i + 1])
        for c in range(3):
            use = stats.usable[rows, c]
            assert available[i, c] == use.any()
            nats = -stats.label_logprob[rows, c][use]
            expected = np.exp(-nats.mean()) if use.any() else 0
            assert label_likelihood[i, c] == pytest.approx(expected, rel=1e-5)
    assert not available.all()

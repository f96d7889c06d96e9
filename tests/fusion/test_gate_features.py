"""Features: differences from the learning model's own, and track accuracy by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedfuse.config.gate import FEATURES
from fedfuse.fusion.gating import features
from fedfuse.fusion.gating.features import build_features, neighbour_accuracy
from fedfuse.fusion.teacher_stats import StackedStats
from fedfuse.sparse import LEAST_LOGPROB
from tests.fusion.example_stats import made_up
from tests.oracles import gate as oracle


def take(stats: StackedStats, columns: list[int]) -> StackedStats:
    """Some candidates only."""
    names = [n for n in stats.__slots__ if n not in ("offsets", "state", "record")]
    return replace(stats, **{n: getattr(stats, n)[:, columns] for n in names})


def accuracy_of(stats: StackedStats, known: np.ndarray, neighbours: int) -> np.ndarray:
    """``[N, C, 2]`` for one gate, which must be the same beside another one."""
    both = neighbour_accuracy(stats, np.stack([~known, known]), neighbours)
    (alone,) = neighbour_accuracy(stats, known[None], neighbours)
    np.testing.assert_array_equal(both[1], alone)
    return alone


def test_others_do_not_change_a_candidates_features() -> None:
    stats = made_up(np.random.default_rng(0), samples=12, candidates=5)
    known = np.arange(12) % 3 > 0

    def build(of: StackedStats) -> np.ndarray:
        accuracy = accuracy_of(of, known, 4)[None]
        (found,) = build_features(of, FEATURES, accuracy, 1)
        return np.asarray(found)

    whole, columns = build(stats), [0, 3, 1]
    assert whole.shape == (12, 5, len(FEATURES) + 1)
    np.testing.assert_array_equal(build(take(stats, columns)), whole[:, columns])
    assert (whole[:, 0] == 0).all()  # nobody differs from himself
    assert np.isfinite(whole).all()


def test_unknown_context_losses_are_no_evidence() -> None:
    stats = made_up(np.random.default_rng(0), samples=6, candidates=3)
    told = stats.context_loss.copy()
    told[:, 2] = np.nan
    asked = replace(stats, context_loss=told)
    first, found = build_features(asked, ("context-loss",), None, 2)
    np.testing.assert_array_equal(first, found)
    assert (found[:, 2] == 0).all()
    expected = np.log(told[:, 1] / told[:, 0])
    np.testing.assert_allclose(found[:, 1, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("neighbours", [1, 4, 8, 30])
def test_track_records_equal_the_oracle(neighbours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_SAMPLES", 4)  # the last block has three
    rng = np.random.default_rng(3)
    stats = made_up(rng, samples=15, candidates=3)
    known = rng.random(15) < 0.6
    found = accuracy_of(stats, known, neighbours)
    assert stats.state is not None
    logs = np.where(stats.available, stats.per_sample(stats.label_logprob), LEAST_LOGPROB)
    right = oracle.neighbour_accuracy(
        stats.state.tolist(), known.tolist(), logs.tolist(), neighbours
    )
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-4)


def test_a_record_does_not_know_its_own_label_or_a_held_out_one() -> None:
    stats = made_up(np.random.default_rng(4), samples=10, candidates=3)
    known = np.arange(10) < 7
    before = accuracy_of(stats, known, 3)
    for sample in (2, 8):  # a known one and one held out
        changed = stats.label_logprob.copy()
        changed[stats.sample_of_row == sample] -= 1
        after = accuracy_of(replace(stats, label_logprob=changed), known, 3)
        np.testing.assert_array_equal(after[sample], before[sample])
        if sample == 8:
            np.testing.assert_array_equal(after, before)
        else:
            assert (after != before).any()


def test_without_states_everybody_is_a_neighbour() -> None:
    stats = made_up(np.random.default_rng(5), samples=8, candidates=2, width=None)
    found = accuracy_of(stats, np.ones(8, dtype=bool), neighbours=2)
    logs = np.where(stats.available, stats.per_sample(stats.label_logprob), LEAST_LOGPROB)
    np.testing.assert_allclose(found[3, :, 0], np.delete(logs, 3, 0).mean(0), rtol=1e-5)


def test_no_training_samples() -> None:
    stats = made_up(np.random.default_rng(6), samples=4, candidates=2)
    found = accuracy_of(stats, np.zeros(4, dtype=bool), neighbours=2)
    assert (found == LEAST_LOGPROB).all()

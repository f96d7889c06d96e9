"""Updates: what changed is what travels, and the receiver ends with what the sender has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfuse.errors import FedfuseError
from fedfuse.knowledge.delta import apply_delta, compute_delta, digest, distances, select_rows
from fedfuse.knowledge.record import Knowledge
from tests.knowledge.conftest import VOCAB, random_knowledge


def slow_distance(one: Knowledge, other: Knowledge, row: int) -> float:
    """Half the sum of absolute differences, token by token."""
    sides = []
    for known in (one, other):
        mass = dict.fromkeys(range(VOCAB), 0.0) | {"rest": float(np.exp(known.tail_logprob[row]))}
        for token, logprob in zip(known.indices[row], known.logprobs[row], strict=True):
            mass[int(token)] += float(np.exp(logprob))
        sides.append(mass)
    return sum(abs(sides[0][key] - sides[1][key]) for key in sides[0]) / 2


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 6))
def test_distances_equal_the_oracle(a: int, b: int, k: int, other_k: int) -> None:
    one, other = random_knowledge(a, k=k), random_knowledge(b, k=other_k)
    slow = [slow_distance(one, other, row) for row in range(one.num_rows)]
    np.testing.assert_allclose(distances(one, other), slow, atol=1e-6)
    np.testing.assert_allclose(distances(other, one), slow, atol=1e-6)
    assert not distances(one, one).any()


def test_distances_do_not_depend_on_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = random_knowledge(1), random_knowledge(2)
    whole = distances(one, other)
    monkeypatch.setattr("fedfuse.knowledge.delta._ROWS", 3)
    np.testing.assert_array_equal(distances(one, other), whole)


def later(before: Knowledge, seed: int, k: int = 4) -> Knowledge:
    """Other knowledge of the same rows."""
    other = random_knowledge(seed, k=k)
    return replace(other, offsets=before.offsets, label_bytes=before.label_bytes)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 1), st.integers(1, 6))
def test_the_receiver_ends_with_what_was_told(seed: int, threshold: float, k: int) -> None:
    before = random_knowledge(seed, k=4)
    now = later(before, seed + 1, k)
    threshold = float(np.quantile(distances(before, now), threshold))
    update = compute_delta(before, now, threshold)
    after = apply_delta(before, update)
    np.testing.assert_array_equal(update.row_mask, distances(before, now) >= threshold)
    told = update.row_mask
    np.testing.assert_array_equal(after.indices[told][:, :k], now.indices[told])
    np.testing.assert_array_equal(after.logprobs[told][:, :k], now.logprobs[told])
    np.testing.assert_array_equal(after.label_logprob[told], now.label_logprob[told])
    np.testing.assert_array_equal(after.tail_logprob[told], now.tail_logprob[told])
    np.testing.assert_array_equal(after.logprobs[~told][:, :4], before.logprobs[~told])
    np.testing.assert_array_equal(after.tail_logprob[~told], before.tail_logprob[~told])
    after.validate(vocab_size=VOCAB, tokenizer="tokenizer", public="public", num_rows=7)


def test_threshold_zero_tells_everything_and_one_next_to_nothing() -> None:
    before, now = random_knowledge(1), random_knowledge(2)
    assert compute_delta(before, before, 0.0).row_mask.all()
    assert not compute_delta(before, before, 1e-9).row_mask.any()
    assert compute_delta(before, now, 0.0).row_mask.all()


def test_rows_of_samples_follow() -> None:
    knowledge = random_knowledge()
    rows = np.zeros(knowledge.num_rows, dtype=bool)
    rows[knowledge.offsets[1] : knowledge.offsets[2]] = True
    some = select_rows(knowledge, rows)
    assert some.num_samples == knowledge.num_samples
    np.testing.assert_array_equal(np.unique(some.sample_of_row), [1])


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("base", "knowledge.base"),
        ("row_mask", "knowledge.row_mask"),
        ("tokenizer", "knowledge.tokenizer"),
        ("public", "knowledge.public"),
        ("label_bytes", "knowledge.label_bytes"),
        ("offsets", "knowledge.offsets"),
    ],
)
def test_an_update_of_something_else_is_refused(field: str, message: str) -> None:
    before = random_knowledge(1)
    now = later(before, 2)
    update = compute_delta(before, now, float(np.median(distances(before, now))))
    assert 0 < update.row_mask.sum() < before.num_rows
    known = update.knowledge
    wrong = {
        "base": replace(update, base=digest(random_knowledge(3))),
        "row_mask": replace(update, row_mask=update.row_mask[1:]),
        "tokenizer": replace(update, knowledge=replace(known, tokenizer="other")),
        "public": replace(update, knowledge=replace(known, public="other")),
        "label_bytes": replace(update, knowledge=replace(known, label_bytes=known.label_bytes + 1)),
        "offsets": replace(update, row_mask=np.roll(update.row_mask, 1)),
    }
    with pytest.raises(FedfuseError, match=message):
        apply_delta(before, wrong[field])


def test_knowledge_of_other_rows_cannot_be_compared() -> None:
    with pytest.raises(FedfuseError, match=r"knowledge\.num_rows: expected 7, got 5"):
        distances(random_knowledge(rows=7), random_knowledge(rows=5))

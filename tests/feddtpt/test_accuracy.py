"""Batches are balanced and weighted, and no question is asked that cannot matter."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest

from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.accuracy import ExampleBatch, accuracy, sample_batch
from fedfuse.feddtpt.label_tasks import LabelledExample
from fedfuse.feddtpt.ledger import Budget, Ledger
from fedfuse.feddtpt.meter import Meter
from tests.feddtpt.fakes import EXAMPLES, MOOD, Function, understands

SKEWED = [LabelledExample(f"own {i}", "good") for i in range(20)]
PUBLIC = [LabelledExample(f"public {i}", "good" if i < 30 else "bad") for i in range(34)]


def test_public_examples_are_balanced() -> None:
    for seed in range(5):
        batch = sample_batch([], PUBLIC, (0, 8), seed)
        assert Counter(e.label for e in batch.examples) == {"good": 4, "bad": 4}
        batch = sample_batch([], PUBLIC, (0, 12), seed)  # there are no more
        assert Counter(e.label for e in batch.examples) == {"good": 8, "bad": 4}
        assert len(set(batch.examples)) == 12


def test_both_kinds_count_by_half() -> None:
    batch = sample_batch(SKEWED, PUBLIC, (4, 8), 0)
    weights = {kind: Fraction(0) for kind in ("own", "public")}
    for example, weight in zip(batch.examples, batch.weights, strict=True):
        weights[example.text.split()[0]] += weight
    assert weights == {"own": Fraction(1, 2), "public": Fraction(1, 2)}
    assert len(batch.examples) == 12
    assert set(sample_batch(SKEWED, [], (4, 8), 0).weights) == {Fraction(1, 4)}
    assert set(sample_batch(SKEWED, PUBLIC, (5, 0), 0).weights) == {Fraction(1, 5)}


def test_a_batch_follows_from_its_seed_and_mixes() -> None:
    batches = [sample_batch(SKEWED, PUBLIC, (8, 8), seed) for seed in (1, 1, 2)]
    assert batches[0] == batches[1] != batches[2]
    kinds = [example.text.split()[0] for example in batches[0].examples]
    assert kinds not in (sorted(kinds), sorted(kinds, reverse=True))
    assert len(sample_batch(SKEWED, PUBLIC, (99, 99), 0).examples) == 54
    with pytest.raises(FedfuseError, match="got 0 private, 3 public ones of 20 and 0"):
        sample_batch(SKEWED, [], (0, 3), 0)


def test_the_accuracy_is_the_weight_of_what_is_right() -> None:
    batch = ExampleBatch(EXAMPLES[:3], (Fraction(1, 2), Fraction(1, 3), Fraction(1, 6)))
    backend = Function(lambda text: "good" if "| item 0" in text else "bad, or good")
    meter = Meter(backend, Ledger(), Budget())
    assert accuracy(MOOD, "judge its", batch, meter) == 0.5
    assert set(backend.asked) == {f"judge its | item {i} =>" for i in range(3)}


@pytest.mark.parametrize("prompt", ["please", "judge", "judge its mood", "word feeling"])
def test_giving_up_changes_no_verdict(prompt: str) -> None:
    """Against all floors: worse, tied or better as with all answers, and never more questions."""
    batch = sample_batch(EXAMPLES, EXAMPLES, (16, 8), 3)
    full = Function(understands)
    exact = accuracy(MOOD, prompt, batch, Meter(full, Ledger(), Budget()))
    assert exact is not None
    saved = 0
    for floor in [i / 48 for i in range(49)] + [exact]:
        backend = Function(understands)
        found = accuracy(MOOD, prompt, batch, Meter(backend, Ledger(), Budget()), floor)
        assert found == exact if exact >= floor else found in (None, exact)
        saved += full.asked.total() - backend.asked.total()
    assert saved > 0 or exact == 1.0

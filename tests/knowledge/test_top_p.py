"""Adaptive k: as many entries as the oracle keeps, and no mass is lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfuse.knowledge.top_p import trim
from tests.knowledge.conftest import VOCAB, random_knowledge
from tests.oracles import postings as oracle


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.01, 1.0))
def test_keeps_what_the_oracle_keeps(seed: int, mass: float) -> None:
    knowledge = random_knowledge(seed, k=6)
    found = trim(knowledge, mass)
    for row in range(knowledge.num_rows):
        number = oracle.kept(knowledge.logprobs[row].tolist(), mass)
        assert np.isfinite(found.logprobs[row]).sum() == number
        np.testing.assert_array_equal(found.indices[row, :number], knowledge.indices[row, :number])
        assert not found.indices[row, number:].any()
    total = np.exp(found.logprobs.astype(np.float64)).sum(1) + np.exp(found.tail_logprob)
    np.testing.assert_allclose(total, 1, atol=1e-6)
    np.testing.assert_array_equal(found.label_logprob, knowledge.label_logprob)
    found.validate(vocab_size=VOCAB, tokenizer="tokenizer", public="public", num_rows=7)


def test_all_of_it() -> None:
    knowledge = random_knowledge()
    assert trim(knowledge, 1.0) is knowledge


@pytest.mark.parametrize(("mass", "kept"), [(0.1, 1), (0.49, 1), (0.6, 2), (0.8, 3), (0.99, 3)])
def test_by_hand(mass: float, kept: int) -> None:
    """Entries of 1/2, 1/4 and 1/8 that leave 1/8."""
    knowledge = random_knowledge(rows=1, samples=1, k=3)
    knowledge.logprobs[0] = np.log([0.5, 0.25, 0.125])
    knowledge.tail_logprob[0] = np.log(0.125)
    found = trim(knowledge, mass)
    assert np.isfinite(found.logprobs[0]).sum() == kept
    assert np.exp(found.tail_logprob[0]) == pytest.approx([0.5, 0.25, 0.125][kept - 1])

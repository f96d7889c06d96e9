"""The study of transfer measures what it says."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.transfer.run import summarize, table
from experiments.transfer.trial import METHODS, compare, slots_of
from experiments.transfer.world import PAIRS
from fedfuse.events import EventDistribution
from fedfuse.sparse import SparseDistribution


def exact() -> SparseDistribution:
    """A row that expects tokens 1, 3 and 5 of six."""
    right = SparseDistribution.empty(2, 3, tail_logprob=-np.inf)
    right.indices[0] = [3, 1, 5]
    right.logprobs[0] = np.log([0.5, 0.3, 0.2])
    right.weight[0] = 1
    return right


def test_distance_of_tokens_to_the_exact_ones() -> None:
    found = SparseDistribution.empty(2, 2, tail_logprob=-np.inf)
    found.indices[0], found.logprobs[0], found.weight[0] = [3, 0], np.log([0.4, 0.4]), 1
    found.tail_logprob[0] = np.log(0.2)
    assert slots_of(found, 0, np.array([5, 3, 0])).tolist() == [2, 0, 1]
    assert compare(found, exact()) == pytest.approx(
        # 0.1 too little on 3, 0.4 too much on 0, 0.3 too little in the tail
        {"taught": 0.5, "total_variation": 0.4, "never_used": 0.4},
        abs=1e-6,
    )


def test_distance_of_events_to_the_exact_tokens() -> None:
    order = np.array([[5, 4, 3, 2, 1, 0]], dtype=np.int32)
    found = EventDistribution.empty(order, 2, 2)
    found.start[0], found.stop[0] = [0, 3], [3, 4]  # tokens 5, 4, 3; token 2
    found.logprobs[0], found.tail_logprob[0], found.weight[0] = np.log([0.6, 0.1]), np.log(0.3), 1
    assert slots_of(found, 0, np.array([3, 2, 1])).tolist() == [0, 1, 2]
    assert compare(found, exact()) == pytest.approx(
        {"taught": 0.5, "total_variation": 0.1, "never_used": 0.1}, abs=1e-6
    )


def test_summary_and_table() -> None:
    after = dict.fromkeys(METHODS, 0.5) | {"exact": 0.25, "events": 0.4}
    rows = [
        {
            "pair": pair,
            "method": method,
            "before": 1.0,
            "after": loss,
            "seed": seed,
            "total_variation": 0.01,
            "never_used": 0.0,
            "taught": 1.0,
        }
        for pair in PAIRS
        for method, loss in after.items()
        for seed in range(2)
    ]
    found = summarize(rows)
    assert found["share_of_exact"] == dict.fromkeys(PAIRS, 0.8)
    assert found["share_of_exact_16"] == dict.fromkeys(PAIRS, 0.6667)
    assert found["closed"]["fine_coarse"]["events"] == {"mean": 0.6, "std": 0.0}
    assert found["total_variation"]["finest_coarse"] == 0.01
    lines = table(found).splitlines()
    assert len(lines) == 2 + len(METHODS) + 3
    assert any(line.startswith("| events |") and "60% ± 0%" in line for line in lines)
    assert any("of what exact closes" in line and "80%" in line for line in lines)

"""What a request for baselines and its reply say comes back; what is malformed is refused."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from fedfuse.algorithms.effort import Effort
from fedfuse.errors import FedfuseError
from fedfuse.flower.baseline_messages import pack_effort, unpack_count, unpack_effort


def test_an_effort_comes_back() -> None:
    info = ConfigRecord({})
    pack_effort(info, "standalone", Effort(4, 16, 0, 2))
    assert unpack_effort(RecordDict({"info": info}), "standalone") == Effort(4, 16, 0, 2)


@pytest.mark.parametrize("found", [[1, 2, 3], [1, 2, 3, -1], [1.0, 2.0, 3.0, 4.0], "four"])
def test_another_effort_is_refused(found: Any) -> None:
    content = RecordDict({"info": ConfigRecord({"standalone/effort": found})})
    with pytest.raises(FedfuseError, match="standalone/effort: expected four whole numbers"):
        unpack_effort(content, "standalone")
    with pytest.raises(FedfuseError, match=r"public-only/effort: .* got None"):
        unpack_effort(content, "public-only")


def test_a_run_may_train_nothing() -> None:
    def steps(**config: Any) -> int:
        return unpack_count(RecordDict({"config": ConfigRecord(config)}), "steps")

    assert (steps(steps=0), steps(steps=7)) == (0, 7)
    for wrong in ({}, {"steps": -1}, {"steps": "7"}):
        with pytest.raises(FedfuseError, match=r"config\.steps: expected a whole number"):
            steps(**wrong)

"""Several phases in one content."""

from __future__ import annotations

import pytest
from flwr.app import ConfigRecord, RecordDict

from fedfuse.errors import FedfuseError
from fedfuse.flower.piggyback import join, split


def content(**records: ConfigRecord) -> RecordDict:
    return RecordDict(dict(records))


def test_split_is_the_inverse_of_join() -> None:
    parts = {
        "train.distill": content(config=ConfigRecord({"round": 1}), knowledge=ConfigRecord()),
        "evaluate": content(config=ConfigRecord({"round": 1})),
        "train.local": content(config=ConfigRecord({"round": 2})),
        "train.baseline": RecordDict(),
    }
    found = split(join(parts))
    assert found == parts
    assert list(found) == list(parts)


def test_what_stands_beside_belongs_to_no_phase() -> None:
    part = content(config=ConfigRecord({"round": 1}))
    whole = RecordDict({**join({"evaluate": part}), "config": ConfigRecord({"round": 7})})
    assert split(whole) == {"evaluate": part}


@pytest.mark.parametrize(
    "phases", [None, ConfigRecord(), ConfigRecord({"names": 3}), ConfigRecord({"names": [1]})]
)
def test_other_contents_are_refused(phases: ConfigRecord | None) -> None:
    whole = RecordDict({"phases": phases} if phases is not None else {})
    with pytest.raises(FedfuseError, match="expected phases with names"):
        split(whole)

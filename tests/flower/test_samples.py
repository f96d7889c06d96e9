"""Shared samples come back as they were; what is malformed or too large is refused."""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedfuse.data.sample import Sample, SharedSamples
from fedfuse.errors import FedfuseError
from fedfuse.flower import samples as module
from fedfuse.flower.messages import arrays_to_record
from fedfuse.flower.samples import copy_samples, pack_samples, unpack_samples

SAMPLES = st.builds(
    Sample,
    st.text(),
    st.text(),
    st.text(),
    st.lists(st.text(), max_size=3).map(tuple),
    st.integers(-1, 3),
)


def packed(shared: SharedSamples) -> RecordDict:
    content = RecordDict({})
    pack_samples(content, shared)
    return content


def of_bytes(data: bytes) -> RecordDict:
    return RecordDict({"samples": arrays_to_record({"json": np.frombuffer(data, dtype=np.uint8)})})


@given(st.lists(SAMPLES, min_size=1), st.lists(SAMPLES, min_size=1), st.lists(SAMPLES))
def test_samples_come_back(
    public: list[Sample], test: list[Sample], questions: list[Sample]
) -> None:
    found = unpack_samples(packed(SharedSamples(public, test, questions)))
    assert (list(found.public), list(found.test), list(found.questions)) == (
        public,
        test,
        questions,
    )


def test_one_content_is_read_once_a_process() -> None:
    shared = SharedSamples([Sample("a", " b")], [Sample("c", " d")])
    kept = RecordDict({})
    copy_samples(packed(shared), kept)
    copy_samples(RecordDict({}), kept)
    assert unpack_samples(kept) is unpack_samples(packed(shared))


ROW = ["prompt", " answer", "domain", [], -1]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"public": [ROW], "test": [ROW]}, "questions"),
        ({"public": [], "test": [ROW], "questions": []}, "at least one public sample, got none"),
        ({"public": [ROW], "test": [], "questions": []}, "at least one test sample, got none"),
        ({"public": [[1, *ROW[1:]]], "test": [ROW], "questions": []}, "a sample of"),
        ({"public": [ROW[:4]], "test": [ROW], "questions": []}, "expected compressed JSON"),
        ([], "expected compressed JSON"),
    ],
)
def test_malformed_samples_are_refused(sets: Any, message: str) -> None:
    with pytest.raises(FedfuseError, match=message):
        unpack_samples(of_bytes(zlib.compress(json.dumps(sets).encode())))


def test_what_is_no_stream_is_refused() -> None:
    whole = zlib.compress(json.dumps({"public": [ROW], "test": [ROW], "questions": []}).encode())
    for data in (b"", b"text", whole[:-6]):
        with pytest.raises(FedfuseError, match="samples: expected compressed JSON"):
            unpack_samples(of_bytes(data))
    with pytest.raises(FedfuseError, match="expected samples, got the records \\['other'\\]"):
        unpack_samples(RecordDict({"other": arrays_to_record({})}))


def test_a_small_message_cannot_unpack_to_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TEXT_BYTES", 1000)
    with pytest.raises(FedfuseError, match="does not end within 1000 bytes"):
        unpack_samples(of_bytes(zlib.compress(b" " * 10**6)))

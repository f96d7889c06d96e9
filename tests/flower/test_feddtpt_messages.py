"""Prompts as messages: small, and refused when they are anything but what they should be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.prompt import Prompt, TunedPrompt
from fedfuse.flower.feddtpt_messages import (
    pack_prompt,
    pack_tuned,
    unpack_prompt,
    unpack_registration,
    unpack_tuned,
)
from fedfuse.flower.messages import arrays_to_record

TUNED = TunedPrompt(Prompt((5, 70000, 9)), (0.0, 0.25, -0.5), 0.75, 40)


def size(content: RecordDict) -> int:
    """Bytes on the wire."""
    from flwr.common.serde import recorddict_to_proto

    return int(recorddict_to_proto(content).ByteSize())


def take(content: RecordDict, length: int = 5, queries: int = 50) -> TunedPrompt:
    return unpack_tuned(content, lambda prompt: 666 not in prompt.tokens, length, queries)


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.floats(-1, 1)), min_size=1, max_size=150))
def test_what_comes_back(tokens: list[tuple[int, float]]) -> None:
    ids, gains = zip(*tokens, strict=True)
    content = RecordDict({})
    pack_tuned(content, TunedPrompt(Prompt(ids), gains, 1.0, 3))
    found = unpack_tuned(content, lambda _: True, 150, 3)
    assert found.prompt.tokens == ids
    assert found.gain == pytest.approx(gains, abs=1e-3)
    assert (found.accuracy, found.queries) == (1.0, 3)
    pack_prompt(content, Prompt(ids))
    assert unpack_prompt(content) == Prompt(ids)


def test_the_longest_is_below_two_kilobytes_both_ways() -> None:
    longest = Prompt(tuple(range(2**31, 2**31 + 150)))
    down, up = RecordDict({"config": ConfigRecord({"round": 99, "run": "x" * 60})}), RecordDict({})
    pack_prompt(down, longest)
    pack_tuned(up, TunedPrompt(longest, (1.0,) * 150, 0.123456789, 10**6))
    assert size(up) <= 2000
    assert size(down) + size(up) <= 2 * 2000


def change(**arrays: np.ndarray) -> Callable[[RecordDict], None]:
    def do(content: RecordDict) -> None:
        whole = {"tokens": np.array([5, 6, 7], np.uint32), "gain": np.zeros(3, np.float16)}
        content["prompt"] = arrays_to_record(whole | arrays)

    return do


def metrics(**values: float) -> Callable[[RecordDict], None]:
    def do(content: RecordDict) -> None:
        content["metrics"] = MetricRecord({"accuracy": 0.5, "queries": 3} | values)

    return do


def leave_out(name: str) -> Callable[[RecordDict], None]:
    return lambda content: content.pop(name) and None


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (leave_out("prompt"), r"expected prompt\.tokens"),
        (leave_out("metrics"), "expected metrics"),
        (change(tokens=np.zeros(0, np.uint32)), "expected 1 to 5, got 0"),
        (change(tokens=np.zeros(6, np.uint32)), "expected 1 to 5, got 6"),
        (change(tokens=np.zeros(3, np.int64)), r"prompt\.tokens: expected .* uint32, got int64"),
        (change(tokens=np.zeros((3, 1), np.uint32)), r"uint32\[3, 1\]"),
        (change(tokens=np.array([5, 666, 7], np.uint32)), "expected tokens that make a text"),
        (change(gain=np.zeros(2, np.float16)), "expected one number .* for each of 3 tokens"),
        (change(gain=np.full(3, np.nan, np.float16)), r"one number in \[-1, 1\].* got .*nan"),
        (change(gain=np.full(3, 1.5, np.float16)), "expected one number"),
        (metrics(accuracy=1.01), r"metrics.accuracy: expected .* got 1.01"),
        (metrics(accuracy=float("nan")), r"metrics.accuracy: expected .* got nan"),
        (metrics(queries=51), r"metrics.queries: expected .* got 51"),
        (metrics(queries=-1), r"metrics.queries: expected .* got -1"),
    ],
)
def test_what_is_refused(spoil: Callable[[RecordDict], None], why: str) -> None:
    content = RecordDict({})
    pack_tuned(content, TUNED)
    assert take(content).prompt == TUNED.prompt
    spoil(content)
    with pytest.raises(FedfuseError, match=why):
        take(content)


def test_bytes_that_are_no_array() -> None:
    content = RecordDict({})
    pack_tuned(content, TUNED)
    record = content["prompt"]
    assert isinstance(record, ArrayRecord)
    record["tokens"].data = b"\x93NUMPY rubbish"
    with pytest.raises(FedfuseError, match=r"prompt\.tokens cannot be read"):
        take(content)


def test_who_registers() -> None:
    info = {"partition": 4, "model": "m", "vocabulary": "aa"}
    assert unpack_registration(RecordDict({"info": ConfigRecord(info)}), "aa") == ("4", "m")
    with pytest.raises(FedfuseError, match=r"vocabulary .* expected the server's, 'bb', got 'aa'"):
        unpack_registration(RecordDict({"info": ConfigRecord(info)}), "bb")
    for content in (RecordDict({}), RecordDict({"info": ConfigRecord({"partition": 1})})):
        with pytest.raises(FedfuseError, match="expected partition, model and vocabulary"):
            unpack_registration(content, "aa")

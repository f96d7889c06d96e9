"""Checkpoints and other files are whole or not there, and damage is noticed."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from fedfuse.errors import FedfuseError
from fedfuse.files import append_line, atomic_write
from fedfuse.tracking.checkpoints import (
    Checkpoint,
    Checkpoints,
    as_array,
    as_texts,
    read,
    strip_prefix,
)

ARRAYS = {
    "a|weights": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "a|step": np.array(7),
    "b|bytes": np.zeros(0, np.uint8),
    "half": np.float16([0.5, -np.inf, np.nan]),
}


def checkpoint(number: int) -> Checkpoint:
    return Checkpoint(number, {**ARRAYS, "number": np.array(number)}, {"list": [1, "é"]})


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file grows beyond so many bytes: what is written there is cut off, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_is_read_is_what_was_saved(tmp_path: Path) -> None:
    files = Checkpoints(tmp_path)
    assert files.latest() is None
    files.save(checkpoint(0))
    found = files.latest()
    assert found is not None
    assert (found.round, found.facts) == (0, {"list": [1, "é"]})
    assert found.arrays.keys() == {*ARRAYS, "number"}
    for name, value in ARRAYS.items():
        assert found.arrays[name].dtype == value.dtype
        np.testing.assert_array_equal(found.arrays[name], value)
    assert strip_prefix(found.arrays, "a|").keys() == {"weights", "step"}
    assert as_texts(as_array({"b": "ü", "a": ""})) == {"a": "", "b": "ü"}


def test_the_facts_can_be_had_alone(tmp_path: Path) -> None:
    files = Checkpoints(tmp_path / "state")
    assert files.peek(3) == {}
    for number in (1, 2):
        files.save(Checkpoint(number, ARRAYS, {"kept": number}))
    assert [files.peek(last) for last in (0, 1, 7)] == [{}, {"kept": 1}, {"kept": 2}]
    (tmp_path / "state" / "round-2.safetensors").write_bytes(b"no header")
    assert files.peek(2) == {}


def test_the_last_ones_stay(tmp_path: Path) -> None:
    files = Checkpoints(tmp_path)
    for number in (8, 9, 10):
        files.save(checkpoint(number))
    assert files.rounds() == [9, 10]  # by number, not by name
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "round-10.safetensors",
        "round-9.safetensors",
    ]
    assert [found.round for last in (None, 10, 9) if (found := files.latest(last))] == [10, 10, 9]
    assert files.latest(8) is None
    files.delete_after(9)
    assert files.rounds() == [9]


@pytest.mark.parametrize("place", ["start", "header", "middle", "end", "cut", "empty"])
def test_a_damaged_one_is_passed_over(place: str, tmp_path: Path) -> None:
    files = Checkpoints(tmp_path)
    files.save(checkpoint(1))
    files.save(checkpoint(2))
    path = tmp_path / "round-2.safetensors"
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    where = {"start": 2, "header": data.index(b"list"), "middle": size + 9, "end": len(data) - 1}
    if place in where:
        data[where[place]] ^= 1
    path.write_bytes(data[: {"cut": len(data) - 3, "empty": 0}.get(place, len(data))])
    found = files.latest()
    assert found is not None
    assert found.round == 1
    [error] = files.damaged
    assert "round-2.safetensors' is damaged" in error
    assert files.latest(1) is not None
    assert not files.damaged


def test_another_round_under_this_name_is_no_damage_but_another_file_is(tmp_path: Path) -> None:
    (tmp_path / "round-3.safetensors").write_text("no checkpoint")
    with pytest.raises(FedfuseError, match="is damaged"):
        read(tmp_path / "round-3.safetensors")
    (tmp_path / ".round-4.safetensors.new").write_text("half")
    (tmp_path / "notes.txt").write_text("")
    assert Checkpoints(tmp_path).rounds() == [3]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    files = Checkpoints(tmp_path)
    files.save(checkpoint(1))
    large = Checkpoint(2, {"weights": np.ones(100_000)})
    with full_disk(10_000), pytest.raises(FedfuseError, match=r"round-2.safetensors' cannot be"):
        files.save(large)
    assert [path.name for path in tmp_path.iterdir()] == ["round-1.safetensors"]
    assert files.latest() is not None
    files.save(large)
    assert files.rounds() == [1, 2]


def test_a_line_is_added_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_line(path, "first")
    with full_disk(10), pytest.raises(FedfuseError, match="lines' cannot be written: File too la"):
        append_line(path, "second")
    assert path.read_text() == "first\n"
    append_line(path, "second")
    assert path.read_text() == "first\nsecond\n"


def test_a_file_that_is_given_up_is_not_seen(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"

    def interrupted() -> None:
        with atomic_write(path) as scratch:
            scratch.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(path.parent.iterdir()) == []

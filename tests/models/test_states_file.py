"""States on disk: written whole or missing, shared, within a limit."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fedfuse.models.states_file import StatesFile, StatesFolder, states_bytes

TOKENS, WIDTH = 11, 3
STARTS, LENGTHS = np.array([0, 4, 6]), np.array([4, 2, 5])


def _file(path: Path, dtype: torch.dtype = torch.float32) -> StatesFile:
    return StatesFile(path / "a.states", TOKENS, WIDTH, dtype)


def _states(length: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(length)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_what_is_written_is_read_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    file = _file(tmp_path, dtype)
    assert file.missing(STARTS, LENGTHS).all()
    file.write(4, _states(2, dtype))
    file.write(6, _states(5, dtype))
    for each in (file, _file(tmp_path, dtype)):
        assert each.missing(STARTS, LENGTHS).tolist() == [True, False, False]
        found = each.read(np.array([[4, 5], [9, 10]]))
        assert found.dtype == dtype
        assert torch.equal(found, torch.stack([_states(2, dtype), _states(5, dtype)[3:]]))


def test_half_a_text_is_missing(tmp_path: Path) -> None:
    """As after a loss of power, or beside a process that writes it now."""
    file = _file(tmp_path)
    file.write(6, _states(5))
    size = states_bytes(TOKENS, WIDTH, torch.float32)
    with file.path.open("r+b") as raw:
        raw.seek(size - 4)
        raw.write(bytes(4))
    again = _file(tmp_path)
    assert again.missing(STARTS, LENGTHS).all()
    again.write(6, _states(5))
    assert again.missing(STARTS, LENGTHS).tolist() == [True, True, False]


def test_another_process_sees_it_while_the_file_is_open(tmp_path: Path) -> None:
    one, other = _file(tmp_path), _file(tmp_path)
    assert other.missing(STARTS, LENGTHS).all()
    one.write(0, _states(4))
    assert other.missing(STARTS, LENGTHS).tolist() == [False, True, True]
    assert torch.equal(other.read(np.array([[0, 1, 2, 3]]))[0], _states(4))


def test_a_file_that_was_removed_and_made_anew(tmp_path: Path) -> None:
    """Another process made room and began again: what is written here is read here."""
    file = _file(tmp_path)
    file.path.unlink()
    other = _file(tmp_path)
    file.write(4, _states(2))
    assert file.missing(STARTS, LENGTHS).tolist() == [True, False, True]
    assert torch.equal(file.read(np.array([[4, 5]]))[0], _states(2))
    assert other.missing(STARTS, LENGTHS).all()


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    """Private texts could be guessed from it."""
    folder = StatesFolder(tmp_path / "states", 10_000)
    file = folder.open("a", TOKENS, WIDTH, torch.float32)
    assert file is not None
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700


def test_it_takes_no_room_before_it_is_written(tmp_path: Path) -> None:
    folder = StatesFolder(tmp_path, 2**40)
    file = folder.open("a", 10**6, 100, torch.float32)
    assert file is not None
    assert file.path.stat().st_size > 4 * 10**8
    assert file.path.stat().st_blocks * 512 < 10**6


def test_the_longest_unused_go_first(tmp_path: Path) -> None:
    size = states_bytes(TOKENS, WIDTH, torch.float32)
    for age, name in enumerate(("young", "old", "oldest")):
        StatesFolder(tmp_path, 10**6).open(name, TOKENS, WIDTH, torch.float32)
        before = time.time() - 100 * age - 100
        os.utime(tmp_path / f"{name}.states", (before, before))
    folder = StatesFolder(tmp_path, 3 * size)
    assert folder.open("old", TOKENS, WIDTH, torch.float32)  # it is used, and no longer old
    assert folder.open("new", TOKENS, WIDTH, torch.float32)
    assert {file.stem for file in tmp_path.iterdir()} == {"young", "old", "new"}
    assert folder.open("newer", TOKENS, WIDTH, torch.float32)
    assert {file.stem for file in tmp_path.iterdir()} == {"old", "new", "newer"}


def test_what_is_in_use_stays(tmp_path: Path) -> None:
    folder = StatesFolder(tmp_path, int(2.5 * states_bytes(TOKENS, WIDTH, torch.float32)))
    assert all(folder.open(name, TOKENS, WIDTH, torch.float32) for name in "ab")
    assert folder.open("c", TOKENS, WIDTH, torch.float32) is None
    assert {file.stem for file in tmp_path.iterdir()} == {"a", "b"}

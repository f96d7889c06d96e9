"""Candidates in files are the candidates, take no memory, and are gone afterwards."""

from __future__ import annotations

import errno
import tracemalloc
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from fedfuse.errors import FedfuseError
from fedfuse.fusion.disk_buffer import DiskBuffer
from fedfuse.fusion.fuser import AlignedTeacher
from fedfuse.fusion.mixing import SparseRows, mix
from fedfuse.fusion.teacher_stats import compute_stats
from fedfuse.sparse import SparseDistribution

VOCAB = 50


def projected(rng: np.random.Generator, rows: int, k: int) -> SparseDistribution:
    """Random distributions; some rows without a teacher."""
    ids = np.argsort(rng.random((rows, VOCAB)), axis=1)[:, :k]
    mass = -np.sort(-rng.dirichlet(np.ones(k + 1), size=rows), axis=1)
    logs = np.log(mass).astype(np.float32)
    weight = (rng.random(rows) < 0.8).astype(np.float32)
    return SparseDistribution(ids, logs[:, :k], logs[:, k], weight)


def candidate(rng: np.random.Generator, rows: int = 7, k: int = 3) -> AlignedTeacher:
    distributions = projected(rng, rows, k)
    loss = rng.random(2).astype(np.float32)
    label = np.zeros(rows, dtype=np.int64)
    stats = compute_stats(distributions, distributions[:2], distributions, label, VOCAB, loss)
    return AlignedTeacher(stats, distributions)


def equal(mine: SparseDistribution, right: SparseDistribution) -> None:
    for found, expected in zip(astuple(mine), astuple(right), strict=True):
        np.testing.assert_array_equal(found, expected)
        if isinstance(expected, np.ndarray):
            assert found.dtype == expected.dtype


@pytest.mark.parametrize("part", [slice(None), slice(2, 5), slice(5, 99), slice(7, 9)])
def test_rows_come_back_as_they_were(part: slice, tmp_path: Path) -> None:
    whole = candidate(np.random.default_rng(0))
    with DiskBuffer(tmp_path) as buffer:
        kept = buffer.put(whole)
        equal(kept.distributions[part], whole.distributions[part])
        assert kept.distributions.k == 3
        assert kept.stats is whole.stats


@pytest.mark.parametrize("block", [2, 512])
def test_fused_from_files_bit_for_bit(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From files in small blocks against all in memory at once; twenty candidates, some trusted."""
    rng = np.random.default_rng(1)
    candidates = [candidate(rng, 40, int(rng.integers(1, 6))) for _ in range(20)]
    weights = (rng.random((40, 20)) * (rng.random((40, 20)) < 0.4)).astype(np.float32)
    weights[5:9] = 0
    whole = mix([c.distributions for c in candidates], weights, 4)
    monkeypatch.setattr("fedfuse.fusion.mixing._ROWS", block)
    with DiskBuffer(tmp_path) as buffer:
        files = [buffer.put(c).distributions for c in candidates]
        equal(mix(files, weights, 4), whole)
    assert not whole.weight[5:9].any()
    assert whole.weight.any()


class Unread:
    """Distributions that nobody may ask for."""

    k = 3

    def __getitem__(self, part: slice) -> SparseDistribution:
        raise AssertionError(f"rows {part} were read")


def test_only_what_is_trusted_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedfuse.fusion.mixing._ROWS", 4)
    here = projected(np.random.default_rng(2), 8, 3)
    asked: list[slice] = []

    class Watched:
        k = 3

        def __getitem__(self, part: slice) -> SparseDistribution:
            asked.append(part)
            return here[part]

    weights = np.zeros((8, 2), dtype=np.float32)
    weights[5, 1] = 1
    mix([Unread(), Watched()], weights, 3)
    assert asked == [slice(4, 8)]


def test_memory_does_not_grow_with_the_candidates(tmp_path: Path) -> None:
    """Peak of writing and fusing; each candidate is trusted on some rows of each block."""
    rows, k = 2000, 16

    def peak(number: int) -> int:
        rng = np.random.default_rng(3)
        weights = np.zeros((rows, number), dtype=np.float32)
        weights[np.arange(rows), rng.integers(number, size=rows)] = 1
        tracemalloc.start()
        try:
            with DiskBuffer(tmp_path) as buffer:
                files: list[SparseRows] = []
                for _ in range(number):
                    files.append(buffer.put(candidate(rng, rows, k)).distributions)
                mix(files, weights, k)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = peak(8), peak(64)
    assert many < few + rows * k * 12  # not even one candidate's worth


@pytest.mark.parametrize("error", [None, RuntimeError("no")])
def test_nothing_is_left(error: Exception | None, tmp_path: Path) -> None:
    try:
        with DiskBuffer(tmp_path) as buffer:
            buffer.put(candidate(np.random.default_rng(0)))
            assert len(list(tmp_path.rglob("*.npy"))) == 1
            if error:
                raise error
    except RuntimeError:
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, table: np.ndarray) -> None:
        path.write_bytes(table.tobytes()[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("numpy.save", full)
    message = r"0\.npy: expected a disk with 308 bytes free .* got No space left on device"
    with pytest.raises(FedfuseError, match=message), DiskBuffer(tmp_path) as buffer:
        buffer.put(candidate(np.random.default_rng(0)))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_or_a_damaged_file_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(FedfuseError, match="nowhere: expected a folder, got No such file"),
        DiskBuffer(tmp_path / "nowhere"),
    ):
        pass
    with DiskBuffer(tmp_path) as buffer:
        kept = buffer.put(candidate(np.random.default_rng(0)))
        [file] = tmp_path.rglob("*.npy")
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(FedfuseError, match=r"0\.npy: expected the rows that were written, got"):
            kept.distributions[slice(2)]

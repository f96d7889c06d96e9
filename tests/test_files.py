"""Folders that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedfuse.errors import FedfuseError
from fedfuse.files import check_unused, new_folder


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with new_folder(folder) as scratch:
        (scratch / "inner").mkdir()
        (scratch / "inner" / "file").write_text("a")
        assert not folder.exists()
    assert (folder / "inner" / "file").read_text() == "a"
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_of_one_that_fails_nothing_stays(error: BaseException, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()

    def fail() -> None:
        with new_folder(tmp_path / "folder") as scratch:
            (scratch / "file").write_text("a")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert list((tmp_path / "folder").iterdir()) == []


def test_what_somebody_wrote_meanwhile_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "folder"

    def be_late() -> None:
        with new_folder(folder) as scratch:
            (scratch / "file").write_text("a")
            folder.mkdir()
            (folder / "theirs").write_text("b")

    with pytest.raises(FedfuseError, match="cannot be written"):
        be_late()
    assert [path.name for path in folder.iterdir()] == ["theirs"]
    with pytest.raises(
        FedfuseError, match=r"output '.*folder': expected a new folder, or an empty"
    ):
        check_unused("output", folder)

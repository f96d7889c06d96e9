"""Files that appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from fedfuse.errors import FedfuseError, check


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A scratch file to write, which takes the place of ``path`` when the block is left well.

    It reaches the disk before it gets its name, so not even a loss of power leaves half of it.

    Raises:
        FedfuseError: when it cannot be written; what was at ``path`` before stays.
    """
    # Other processes may be writing the same file.
    scratch = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        sync(scratch)
        scratch.replace(path)
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise unwritable(path, error) from error
    finally:
        scratch.unlink(missing_ok=True)


def check_unused(what: str, path: Path) -> None:
    """Refuse a folder to be written that is there and holds something.

    Args:
        what: what names the folder, such as an option.
        path: the folder.

    Raises:
        FedfuseError: for a file, and a folder that is not empty.
    """
    name, expected = f"{what} {str(path)!r}", "a new folder, or an empty one"
    check(name, "a file", expected, path.is_dir() or not path.exists())
    found = len(list(path.iterdir())) if path.is_dir() else 0
    check(name, f"one that holds {found} files or folders", expected, not found)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A scratch folder to fill, which becomes ``path`` when the block is left well.

    Its files reach the disk before it gets its name; of a block that fails, nothing stays.

    Raises:
        FedfuseError: when it cannot be written, or something is at ``path`` already.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        scratch.mkdir(parents=True)
        yield scratch
        for file in scratch.rglob("*"):
            sync(file)
        if path.is_dir():
            path.rmdir()  # which an empty folder alone allows
        scratch.rename(path)
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise unwritable(path, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file; all of it, or nothing.

    Raises:
        FedfuseError: when it cannot be written.
    """
    try:
        with path.open("ab", buffering=0) as file:
            before, data = file.seek(0, os.SEEK_END), line.encode() + b"\n"
            try:
                while data:  # On a disk that fills up, a part is written before the error comes.
                    data = data[file.write(data) :]
            except OSError:
                file.truncate(before)
                raise
    except OSError as error:
        raise unwritable(path, error) from error


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unwritable(path: Path, error: Exception) -> FedfuseError:
    """The error for a file that cannot be written."""
    reason = getattr(error, "strerror", None) or error
    return FedfuseError(f"{str(path)!r} cannot be written: {reason}; expected a disk with room")

"""What a test leaves behind: Flower's and Ray's processes, and temporary folders.

``traces`` gives a test an empty folder for temporary files and a mark in its environment, which
every process that it starts inherits. It knows nothing of how fedfuse finds processes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

_MARK = "FEDFUSE_TEST"


@dataclass(frozen=True)
class Traces:
    """Where a test's temporary files go, and what its processes have in their environment."""

    folder: Path
    mark: str

    def processes(self) -> list[str]:
        """The command lines of the processes that the test started and that are still there."""
        found = []
        for process in self._processes():
            # One that has ended since it was listed is not there any more.
            with suppress(psutil.NoSuchProcess):
                found.append(" ".join(process.cmdline()))
        return found

    def files(self) -> list[str]:
        """The names of what lies in the test's temporary folder."""
        return sorted(os.listdir(self.folder))

    def remove(self) -> None:
        """Stop the processes and remove the folder."""
        for process in self._processes():
            process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _processes(self) -> list[psutil.Process]:
        return [p for p in psutil.process_iter() if p.pid != os.getpid() and self._is_ours(p)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            if process.environ().get(_MARK) == self.mark:
                return True
            # Ray's processes overwrite their environment with their new name.
            return str(self.folder) in " ".join([process.cwd(), *process.cmdline()])
        except (psutil.Error, OSError):
            return False


@contextmanager
def traced() -> Iterator[Traces]:
    """A short temporary folder and a mark for all that is started within; both go afterwards."""
    found = Traces(Path(tempfile.mkdtemp(prefix="ff", dir="/tmp")), uuid.uuid4().hex)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(_MARK, found.mark)
        patch.setenv("TMPDIR", str(found.folder))
        patch.setattr(tempfile, "tempdir", None)  # Python looks at TMPDIR only once.
        try:
            yield found
        finally:
            found.remove()


@pytest.fixture
def traces() -> Iterator[Traces]:
    """``traced`` for one test."""
    with traced() as found:
        yield found

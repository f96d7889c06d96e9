"""Knowledge in files is what goes over the wire."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedfuse.errors import FedfuseError
from fedfuse.knowledge import storage
from fedfuse.knowledge.codec import decode, encode
from fedfuse.knowledge.top_p import trim
from tests.knowledge.conftest import random_knowledge


def test_saved_and_loaded(tmp_path: Path) -> None:
    knowledge = random_knowledge()
    storage.save(tmp_path / "known", knowledge, 8, 0.8)
    message = encode(trim(knowledge, 0.8), 8)
    assert (tmp_path / "known").read_bytes() == message
    for name, values in storage.load(tmp_path / "known").arrays().items():
        np.testing.assert_array_equal(values, getattr(decode(message), name))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FedfuseError, match=r"absent.*expected a file of knowledge"):
        storage.load(tmp_path / "absent")
    with pytest.raises(FedfuseError, match="cannot be written"):
        storage.save(tmp_path / "absent" / "known", random_knowledge())


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "MAX_BYTES", 10)
    (tmp_path / "known").write_bytes(bytes(11))
    with pytest.raises(FedfuseError, match="expected at most 10 bytes, got more"):
        storage.load(tmp_path / "known")

"""``fedfuse inspect``: what a saved message holds."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from fedfuse.cli import main as cli
from fedfuse.knowledge.container import FIELDS
from fedfuse.knowledge.storage import save
from fedfuse.knowledge.top_p import trim
from tests.knowledge.conftest import random_knowledge


def call(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["fedfuse", "inspect", str(path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_shows_what_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    knowledge = random_knowledge(rows=9)
    save(tmp_path / "known", knowledge, 8, 0.8)
    assert call(tmp_path / "known", monkeypatch) == 0
    out = capsys.readouterr().out
    about, _, table = out.partition("\n\n")
    shown = dict(line.split(maxsplit=1) for line in about.replace("mean kept ", "").splitlines())
    trimmed = trim(knowledge, 0.8).logprobs
    assert shown["version"] == "2"
    assert "logprob bits    8" in about
    assert (shown["tokenizer"], shown["rows"], shown["samples"]) == ("tokenizer", "9", "3")
    assert f"mean kept k     {np.isfinite(trimmed).sum() / 9:.2f}" in about
    assert float(shown["mass"]) == pytest.approx(np.exp(trimmed).sum() / 9, abs=0.02)
    sizes = {line[:16].strip(): line.split()[-2:] for line in table.splitlines()[1:]}
    assert list(sizes) == [*FIELDS, "header, checksum", "all"]
    size = (tmp_path / "known").stat().st_size
    assert sizes["all"] == [str(size), f"{size / 9:.2f}"]
    assert sum(int(found) for found, _ in sizes.values()) == 2 * size


def test_refuses_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").write_bytes(b"something else altogether" * 9)
    assert call(tmp_path / "other", monkeypatch) == 1
    assert capsys.readouterr().err.startswith(
        "error: knowledge: expected at least 78 bytes that begin with"
    )
    assert call(tmp_path / "absent", monkeypatch) == 1

"""``fedfuse extract``: a file of what a model knows, or one line that says why not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedfuse.cli import main as cli
from fedfuse.knowledge.archive import KnowledgeArchive
from tests.federations import FAST, tiny_builtin

__all__ = ["tiny_builtin"]


def call(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    sets = [f"--set={key}={str(value).lower()}" for key, value in FAST.items()]
    monkeypatch.setattr(sys, "argv", ["fedfuse", "extract", *options, *sets])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_writes_a_file_and_says_how_much(
    tiny_builtin: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "file"
    options = ("--model=builtin:gpt2", f"--output={file}", "--data=builtin")
    assert call(monkeypatch, *options) == 0
    archive = KnowledgeArchive.read(file)
    assert f"{file}: knowledge of {len(archive):,} inputs, " in capsys.readouterr().out
    assert archive.model.startswith("builtin:gpt2 ")
    assert call(monkeypatch, *options) == 0  # all is there
    assert call(monkeypatch, "--model=builtin:llama", *options[1:]) == 1
    assert "model: expected 'builtin:llama" in capsys.readouterr().err

"""``fedfuse export``: a folder and a line about it, or one line that says why not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedfuse.cli import main as cli
from tests.federations import federate, tiny_builtin

__all__ = ["tiny_builtin"]


def call(monkeypatch: pytest.MonkeyPatch, *options: object) -> int:
    monkeypatch.setattr(sys, "argv", ["fedfuse", "export", *map(str, options)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_writes_a_folder_and_says_what_is_in_it(
    tiny_builtin: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = federate(tmp_path, clients=2, rounds=1)
    capsys.readouterr()
    assert call(monkeypatch, run) == 0
    folder = run / "server" / "merged"
    assert capsys.readouterr().out.startswith(f"{folder}: LlamaForCausalLM, float32, ")
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, run, "--model=0", "--output=mine", "--dtype=float16") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path / 'mine'}: GPT2LMHeadModel, float16, ")
    assert said.rstrip().endswith("nats/byte")
    assert (tmp_path / "mine" / "model.safetensors").is_file()
    assert call(monkeypatch, run) == 1
    error = capsys.readouterr().err
    assert "expected a new folder, or an empty one, got one that holds" in error
    assert "Traceback" not in error

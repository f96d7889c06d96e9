from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedfuse.report.table import print_table
from fedfuse.tracking.run import RunFolder, read_run
from tests.report.folders import write_folder


def printed(run: RunFolder, width: int = 100, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, **options)
    print_table(run, console)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def row(text: str, name: str) -> list[str]:
    """The words of the first line that begins with a name."""
    line = next(line for line in text.splitlines() if line.strip().startswith(name))
    return line.strip().removeprefix(name).split()


def test_numbers(run: RunFolder) -> None:
    text = printed(run)
    assert "quickstart: loss in nats/byte, accuracy" in text
    expected = "0.460 25% 0.331 48% 0.273 59% 0.232 66% 72%"
    assert row(text, "server") == expected.split()
    expected = "0.456 26% 0.439 33% 0.351 45% 0.282 57% 0.237 65% 66%"
    assert row(text, "clinic / gpt2") == expected.split()
    assert row(text, "entropy floor") == ["0.200", "72%"]
    assert "excess removed: federated against zero-shot (server) and standalone (clients)" in text


def test_without_floor_and_accuracy(tmp_path: Path) -> None:
    text = printed(read_run(write_folder(tmp_path, floor=False, accuracy=False)))
    assert row(text, "server") == ["0.460", "0.331", "0.273", "0.232", "\N{MINUS SIGN}0.187"]
    assert "floor" not in text
    assert "%" not in text


def test_without_baselines(tmp_path: Path) -> None:
    text = printed(read_run(write_folder(tmp_path, stages=("federated",))))
    assert row(text, "model") == ["federated"]
    assert row(text, "bank / llama") == ["0.286", "57%"]


def test_without_metrics(tmp_path: Path) -> None:
    assert "entropy floor: " in printed(read_run(write_folder(tmp_path, stages=())))


def test_hostile_names(hostile: Path) -> None:
    text = printed(read_run(hostile))
    assert "<script>al" in text
    assert "\x1b" not in text
    assert "[/bold red]" in text


@pytest.mark.parametrize("width", [200, 100])
def test_at_most_100_columns(hostile: Path, width: int) -> None:
    text = printed(read_run(hostile), width)
    assert max(map(len, text.splitlines())) <= 100
    assert row(text, "workshop / gpt-neox")[-1] == "59%"


def test_a_narrow_terminal_drops_accuracies_first(run: RunFolder) -> None:
    text = printed(run, 80)
    assert "loss in nats/byte\n" in text
    assert row(text, "server") == ["0.460", "0.331", "0.273", "0.232", "72%"]


def test_better_is_green_and_worse_red(run: RunFolder, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "force_terminal": True,
        "color_system": "standard",
        "legacy_windows": False,
    }
    assert "\x1b[32m" in printed(run, **options)
    assert "\x1b[31m" not in printed(run, **options)
    folder = write_folder(tmp_path, stages=("zero-shot", "federated"), clients=0)
    text = (folder / "metrics.jsonl").read_text().replace('"federated"', '"x"')
    text = text.replace('"zero-shot", "round": 0', '"federated", "round": 1')
    text = text.replace('"x"', '"zero-shot"')
    (folder / "metrics.jsonl").write_text(text)
    assert "\x1b[31m" in printed(read_run(folder), **options)


def test_own_console_is_100_columns_wide(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    table = print_table(run)
    text = capsys.readouterr().out
    assert table.row_count == 6
    assert 90 < max(map(len, text.splitlines())) <= 100
    assert row(text, "entropy floor") == ["0.200", "72%"]

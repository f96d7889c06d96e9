from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedfuse.report.formatting import (
    bytes_text,
    change_text,
    count,
    loss_text,
    percent,
    seconds_text,
    shorten,
)
from fedfuse.report.summary import summary
from fedfuse.tracking.run import RunFolder, read_run
from tests.report.folders import write_folder, write_lines


def plain(text: str) -> str:
    """Typographic minus and spaces as one types them."""
    return text.replace("\N{MINUS SIGN}", "-").replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.4123, "0.412"),
        (-0.0001, "0.000"),
        (-0.02, "-0.020"),
        (None, ""),
        (float("nan"), "diverged"),
    ],
)
def test_loss(value: float | None, text: str) -> None:
    assert plain(loss_text(value)) == text


@pytest.mark.parametrize(("value", "text"), [(0.1, "+0.100"), (-0.1, "-0.100"), (0.0, "0.000")])
def test_change(value: float, text: str) -> None:
    assert plain(change_text(value)) == text


def test_percent() -> None:
    assert [plain(percent(x)) for x in (0.614, -0.92, None)] == ["61%", "-92%", ""]
    assert percent(float("nan")) == "diverged"


def test_bytes() -> None:
    sizes = [plain(bytes_text(size)) for size in (0, 999, 12_340, 5.5e6, 2e9)]
    assert sizes == ["0 bytes", "999 bytes", "12.3 kB", "5.5 MB", "2.0 GB"]


def test_seconds() -> None:
    times = [plain(seconds_text(time)) for time in (0.4, 12.34, 59.99, 200.2, 3599.7, 7500)]
    assert times == ["0.40 s", "12.3 s", "60.0 s", "3 min 20 s", "1 h 00 min", "2 h 05 min"]


def test_shorten_keeps_both_ends() -> None:
    assert shorten("abcdefghij", 5) == "ab\N{HORIZONTAL ELLIPSIS}ij"
    assert len(shorten("x" * 99, 22)) == 22
    assert shorten("short", 5) == "short"
    assert shorten("", 22) == "(no name)"


def test_count() -> None:
    assert (count(1, "round"), count(1200, "task")) == ("1 round", "1,200 tasks")


class TestSummary:
    def test_every_number(self, run: RunFolder) -> None:
        assert [plain(sentence) for sentence in summary(run)] == [
            "4 clients and a server, 4 domains, 5 rounds of federation.",
            "The server's loss fell from 0.260 to 0.073 nats/byte above the entropy floor "
            "(72% of the excess removed); its accuracy went from 25% to 59%, "
            "where 72% is the best possible.",
            "That loss would be 0.131 when trained on the public set alone and 0.032 when trained "
            "on everyone's data in one place.",
            "Against training alone, the clients' mean loss fell from 0.241 to 0.084 nats/byte "
            "above the entropy floor: all 4 gained.",
            "The exchange took 9.1 MB to the clients and 9.2 MB back, "
            "and 5 min 07 s summed over 69 tasks.",
        ]

    def test_without_floor_and_accuracy(self, tmp_path: Path) -> None:
        run = read_run(write_folder(tmp_path, floor=False, accuracy=False, status="running"))
        text = " ".join(summary(run))
        assert "The server's loss fell from 0.460 to 0.273 nats/byte." in text
        assert "has not finished" in text
        assert "floor" not in text
        assert "accuracy" not in text

    def test_without_anything_to_compare_with(self, tmp_path: Path) -> None:
        run = read_run(write_folder(tmp_path, stages=("federated",), status="failed"))
        text = " ".join(summary(run))
        assert "before the run failed" in text
        assert "server's loss ended at 0.073 nats/byte above the entropy floor." in text
        assert "clients' mean loss ended at 0.084 nats/byte above" in text

    def test_losers_and_diverged_are_named(self, tmp_path: Path) -> None:
        lines = _changed(write_folder(tmp_path, failing="2"), {"1": 0.4, "3": float("nan")})
        write_lines(tmp_path / "metrics.jsonl", lines)
        text = " ".join(summary(read_run(tmp_path)))
        assert "2 of 4 gained; bank / llama lost; workshop / gpt-neox diverged." in text
        assert "4 of them failed." in text

    def test_a_server_that_got_worse(self, tmp_path: Path) -> None:
        lines = _changed(write_folder(tmp_path, clients=1), {"server": 0.5})
        write_lines(tmp_path / "metrics.jsonl", lines)
        text = " ".join(summary(read_run(tmp_path)))
        assert "rose from 0.260 to 0.573" in text
        assert "(120% of it added)" in text
        assert "Against training alone, the client's loss fell from 0.238 to 0.082" in text

    def test_all_clients_diverged(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path, clients=2)
        nan = float("nan")
        write_lines(
            tmp_path / "metrics.jsonl", _changed(folder, {"0": nan, "1": nan, "server": nan})
        )
        text = " ".join(summary(read_run(tmp_path)))
        assert "The server's loss diverged;" in text
        assert "0 of 2 gained; clinic / gpt2, bank / llama diverged." in text

    def test_nothing_happened(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path, clients=1)
        lines = [
            line | {"loss": 0.5}
            for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        ]
        write_lines(folder / "metrics.jsonl", lines)
        assert "stayed at 0.300 nats/byte" in " ".join(summary(read_run(folder)))

    def test_an_empty_run(self, tmp_path: Path) -> None:
        run = read_run(write_folder(tmp_path, clients=0, stages=(), rounds=0))
        assert summary(run) == ["A server, 4 domains, 0 rounds of federation."]


def _changed(folder: Path, more: dict[str, float]) -> list[dict[str, object]]:
    """The folder's metrics with losses added to the federated stage of some models."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["stage"] == "federated":
            line["loss"] += more.get(line["model"], 0.0)
    return lines

"""docs/performance.md shows the committed results, and of what was not measured nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import publish
from experiments.harness import put_table


def test_the_page_is_the_results(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(publish.PAGE.read_text())
    put_table(page, publish.peers_table(publish.read("peers")), "peers")
    put_table(page, publish.rounds_table(publish.read("rounds")), "rounds")
    assert page.read_text() == publish.PAGE.read_text()


def test_ratios_are_ours_over_theirs() -> None:
    found = {
        "questions_over_harness_rate": 2.0,
        "questions_over_harness_memory": 0.25,
        "step_over_trainer_time": 0.5,
    }
    rows = publish.peers_table(found).splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[1:] for row in cells] == [["0.50", ""], ["0.50", "0.25"]]


def test_without_results_there_are_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "RESULTS", tmp_path)
    assert publish.read("rounds") == {}
    assert len(publish.rounds_table({}).splitlines()) == 2


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    publish.draw(publish.read("peers"), tmp_path / "performance.svg")
    drawn = (tmp_path / "performance.svg").read_text()
    assert all(name in drawn for name in publish.SHORT)
    assert "0.30" in drawn

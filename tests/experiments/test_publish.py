"""Results go into the documents; a study that has none yet is named and left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import publish


def test_studies_without_results_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there, missing = tmp_path / "study" / "results.json", tmp_path / "study" / "more.json"
    there.parent.mkdir()
    there.write_text(json.dumps({"summary": 3}))
    frames: list[object] = []
    monkeypatch.setattr(publish, "HERE", tmp_path)
    monkeypatch.setattr(publish, "PUBLISHERS", dict.fromkeys((missing, there), frames.append))
    publish.main()
    assert frames == [{"summary": 3}]
    assert capsys.readouterr().out.splitlines() == [
        "no results yet: study/more.json",
        "published: study/results.json",
    ]

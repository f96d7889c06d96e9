"""Prompts of a run as rows, sentences, table and page, from lines made up by hand."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedfuse.errors import FedfuseError
from fedfuse.report import html
from fedfuse.report.feddtpt import (
    accuracy_by_queries,
    prompt_rows,
    prompts_text,
    token_clusters,
)
from fedfuse.report.summary import summary
from fedfuse.report.table import print_table
from fedfuse.tracking.run import read_run
from tests.report.folders import write_folder, write_lines


def prompt(stage: str, number: int, model: str, words: str, **more: Any) -> dict[str, Any]:
    line = {"stage": stage, "round": number, "model": model, "tokens": words.split()}
    return {**line, "queries": 10, "test": None, "private": None, **more}


def point(client: str, token: str, cluster: int, x: float) -> dict[str, Any]:
    return {"client": client, "token": token, "cluster": cluster, "x": x, "y": -x}


PROMPTS = [
    prompt("zero-shot", 0, "server", "say it", queries=0, test=0.125, private=0.2),
    prompt("federated", 1, "server", "judge <b>mood</b>", queries=1200, test=0.5, private=0.6),
    prompt("federated", 1, "0", "judge it", private=0.5),
    prompt("federated", 2, "server", "judge feeling", queries=2400, test=0.75, private=0.7),
    prompt("federated", 2, "0", "judge feeling", test=0.75, private=0.9),
    prompt("federated", 2, "1", "say feeling", test=0.25, private=0.4),
    prompt("standalone", 2, "0", "say mood", test=0.25),
    prompt("standalone", 2, "1", "mood", test=0.5),
    prompt("centralized", 2, "server", "$mood$ 病院", queries=2300, test=0.875),
]
AGGREGATIONS = [
    {
        "round": 1,
        "chosen": "aggregated",
        "scores": {"previous": 0.1, "aggregated": 0.5},
        "kept": [
            {"token": "judge", "weight": 1.0, "cluster": 0, "clients": ["0", "1"]},
            {"token": "<b>mood</b>", "weight": 0.5, "cluster": -1, "clients": ["1"]},
        ],
        "uploaded": [
            point("0", "judge", 0, 0.1),
            point("1", "judge", 0, 0.2),
            point("1", "<b>mood</b>", -1, 0.9),
        ],
    },
    {"round": 2, "chosen": "0", "scores": {}, "kept": [], "uploaded": []},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = write_folder(tmp_path / "run", clients=2, rounds=2, domains=["mood"], floor=False)
    for name in ("metrics", "teacher_shares", "gates"):
        (place / f"{name}.jsonl").unlink()
    write_lines(place / "prompts.jsonl", PROMPTS)
    write_lines(place / "aggregations.jsonl", AGGREGATIONS)
    return place


def test_rows(folder: Path) -> None:
    rows = prompt_rows(read_run(folder))
    assert [(row.name, row.text, row.test, row.queries, row.chosen) for row in rows] == [
        ("manual", "say it", "12%", "0", ""),
        ("1", "judge <b>mood</b>", "50%", "1,200", "aggregated"),
        ("2", "judge feeling", "75%", "2,400", "0"),
        ("clients' own, best", "judge feeling", "75%", "10", ""),
        ("search alone, best", "mood", "50%", "10", ""),
        ("centralized", "$mood$ 病院", "88%", "2,300", ""),
    ]
    assert rows[1].tokens == (("judge", "0, 1"), ("<b>mood</b>", "1"))
    assert rows[2].tokens == (("judge", ""), ("feeling", ""))


def test_sentences(folder: Path) -> None:
    run = read_run(folder)
    text = prompts_text(run)
    assert text.startswith(
        "Accuracy of the global prompt on the test set went from 12% to 75% with 2,400 paid "
        "queries. The clients' own prompts reached 50% in the mean, 75% at best. Search alone "
        "reached 38% in the mean, 50% at best. One search with everybody's data reached 88%."
    )
    assert text in summary(run)
    assert "2 rounds of federation" in summary(run)[0]


def test_page_and_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = read_run(folder)
    for svg in (accuracy_by_queries(run), token_clusters(run)):
        assert svg.startswith("<svg")
    assert "&lt;b&gt;mood" in token_clusters(run)
    monkeypatch.setattr(html, "PLOTS", dict.fromkeys(html.PLOTS, lambda run: ""))
    page = html.render(run)
    assert '<span title="from 0, 1">judge<sub>0, 1</sub></span>' in page
    assert "&lt;b&gt;mood&lt;/b&gt;" in page
    assert "<b>" not in page
    console = Console(width=100, record=True, file=io.StringIO())
    print_table(run, console)
    shown = console.export_text()
    assert "quickstart: accuracy" in shown
    assert "judge <b>mood</b>" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_a_run_without_prompts_has_none_of_it(tmp_path: Path) -> None:
    run = read_run(write_folder(tmp_path / "run"))
    assert prompt_rows(run) == []
    assert prompts_text(run) == accuracy_by_queries(run) == token_clusters(run) == ""


@pytest.mark.parametrize(
    ("name", "line", "why"),
    [
        ("prompts", PROMPTS[1] | {"test": 1.5}, "'test': .* got 1.5"),
        ("prompts", PROMPTS[1] | {"model": "9"}, "'model': .* got '9'"),
        ("aggregations", AGGREGATIONS[0] | {"kept": [3]}, "'kept': expected a list of objects"),
        (
            "aggregations",
            AGGREGATIONS[0] | {"uploaded": [point("0", "a", -2, 0.0)]},
            "'uploaded', 1: 'cluster': .* got -2",
        ),
    ],
)
def test_malformed_lines_are_named(folder: Path, name: str, line: Any, why: str) -> None:
    (folder / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(FedfuseError, match=rf"{name}\.jsonl, line 1.*{why}"):
        read_run(folder)

"""What got worse, what was taken back, and how gates learned, as a report tells it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedfuse.errors import FedfuseError
from fedfuse.report import regressions
from fedfuse.report.style import styled
from fedfuse.tracking.run import RunFolder, read_run
from fedfuse.tracking.run_writer import RunWriter
from tests.report.folders import write_folder, write_lines


def line(model: str, domain: str, stage: str, number: int, loss: float, **more: Any) -> object:
    place = {"stage": stage, "round": number, "model": model, "domain": domain}
    return place | {"loss": loss, "accuracy": None, "samples": 9} | more


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two models on two domains; the server's court and client 0's bank end worse."""
    folder = write_folder(tmp_path / "run", clients=1, domains=("bank", "court"))
    lines = []
    for model, domain, after, noise in (
        ("server", "bank", 0.30, 0.02),
        ("server", "court", 0.56, 0.02),
        ("0", "bank", 0.62, 0.02),
        ("0", "court", 0.515, 0.02),  # within noise
    ):
        lines += [
            line(model, domain, "zero-shot", 0, 0.5),
            line(model, domain, "federated", 1, 0.9, noise=0.5),
            line(model, domain, "federated", 2, after, noise=noise),
        ]
    write_lines(folder / "metrics.jsonl", lines)
    return folder


def test_by_hand(small: Path) -> None:
    run = read_run(small)
    found = regressions.interference(run)
    assert found is not None
    assert found.rate == 0.5
    assert found.depth == pytest.approx((0.06 + 0.12) / 2)
    assert [(row.name, row.domain, row.change) for row in regressions.worse_rows(run)] == [
        ("bank / gpt2", "bank", "+0.120"),
        ("server", "court", "+0.060"),
    ]
    assert regressions.regressions_text(run) == (
        "Of 4 pairs of model and domain 50% got worse beyond noise, by 0.090 nats/byte in the mean."
    )


def test_nothing_to_compare(small: Path) -> None:
    write_lines(small / "metrics.jsonl", [line("server", "bank", "zero-shot", 0, 0.5)])
    run = read_run(small)
    assert regressions.interference(run) is None
    assert regressions.regressions_text(run) == ""
    assert regressions.worse_rows(run) == []


def test_what_was_taken_back(small: Path) -> None:
    acceptances = [
        {"round": 1, "model": "server", "keep": False, "changes": {"": -0.01, "court": 0.05}},
        {"round": 2, "model": "server", "keep": True, "changes": {"": -0.02}},
    ]
    write_lines(small / "acceptance.jsonl", acceptances)
    (row,) = regressions.taken_back_rows(read_run(small))
    assert (row.round, row.name) == (1, "server")
    assert row.changes == "court +0.050, all \N{MINUS SIGN}0.010"


def test_lines_are_checked(small: Path) -> None:
    wrong = {"round": 1, "model": "server", "keep": 1, "changes": {}}
    write_lines(small / "acceptance.jsonl", [wrong])
    with pytest.raises(FedfuseError, match=r"line 1: 'keep': expected true or false"):
        read_run(small)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, "run", {"seed": 0})
    writer.describe(models={"server": "m"}, domains=["bank"], names={"server": "server"})
    writer.gate_loss(1, "server", 2.0, 1.5)
    writer.acceptance(1, "server", keep=False, changes={"": 0.1, "bank": 0.2})
    run = read_run(writer.folder)
    assert [(f.round, f.model, f.before, f.after) for f in run.gate_losses] == [
        (1, "server", 2.0, 1.5)
    ]
    assert [(v.keep, v.changes) for v in run.acceptances] == [(False, {"": 0.1, "bank": 0.2})]
    with pytest.raises(FedfuseError, match="domain: expected one of bank, got 'cour'"):
        writer.acceptance(1, "server", keep=False, changes={"cour": 0.1})


def test_gates_are_drawn(run: RunFolder, svgs: dict[str, str]) -> None:
    assert "nats/row" in svgs["gates"]
    assert json.dumps(run.name("0"))[1:-1] in svgs["gates"]


@pytest.mark.parametrize("clients", [1, 4, 8])
def test_the_legend_of_the_gates_is_within_its_figure(clients: int, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "run", clients=clients, domains=("consultancy", "court"))
    with styled():
        figure = regressions.gates.__wrapped__(read_run(folder))  # type: ignore[attr-defined]
        figure.draw_without_rendering()
        (legend,) = figure.legends
        box, (axes,) = legend.get_window_extent(), figure.axes
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert axes.get_tightbbox().y1 <= box.y0 < box.y1 <= figure.bbox.y1
        assert axes.get_window_extent().height > 1.5 * figure.dpi

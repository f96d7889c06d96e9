from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from fedfuse.report import message_plots, plots
from fedfuse.report.html import PLOTS
from fedfuse.report.style import INK, category_fill
from fedfuse.tracking.json_fields import clean
from fedfuse.tracking.run import RunFolder, read_run
from tests.report.conftest import HOSTILE
from tests.report.folders import write_folder, write_lines

SVG = "{http://www.w3.org/2000/svg}"
# Plots of prompts need a run that has some: tests/report/test_feddtpt.py.
OF_MODELS = [name for name in PLOTS if name not in ("accuracy_by_queries", "token_clusters")]
EVERY_PLOT = pytest.mark.parametrize("draw", PLOTS.values(), ids=PLOTS)


def texts(svg: str) -> list[str]:
    """Every text of a plot; parsing fails on anything but well-formed XML."""
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]


@pytest.mark.parametrize("name", OF_MODELS)
def test_an_element_for_a_page(svgs: dict[str, str], name: str) -> None:
    svg = svgs[name]
    root = ElementTree.fromstring(svg)
    assert svg.startswith("<svg")
    assert float(root.attrib["width"]) <= 922
    assert "currentColor" in svg
    assert INK not in svg
    # Nothing that a page without a network and without scripts could not show.
    assert not {f"{SVG}image", f"{SVG}script", f"{SVG}metadata"} & {e.tag for e in root.iter()}
    ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids))
    for element in root.iter():
        for value in element.attrib.values():
            if "url(#" in value:
                assert value.split("url(#")[1].split(")")[0] in ids


def test_ids_differ_from_plot_to_plot(svgs: dict[str, str]) -> None:
    roots = (ElementTree.fromstring(svgs[name]) for name in OF_MODELS)
    ids = [e.attrib["id"] for root in roots for e in root.iter() if "id" in e.attrib]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", OF_MODELS)
def test_hostile_names(hostile_svgs: dict[str, str], name: str) -> None:
    found = texts(hostile_svgs[name])
    assert not any("\x1b" in text or "\x00" in text for text in found)
    # A panel of the curves is too narrow for the whole name, and traffic names no clients.
    if name not in ("traffic", "curves"):
        assert clean(HOSTILE["0"]) in found


@EVERY_PLOT
def test_nothing_to_show(tmp_path: Path, draw: Callable[[RunFolder], str]) -> None:
    run = read_run(write_folder(tmp_path, clients=0, stages=(), rounds=0))
    assert draw(run) == ""


def test_reproducible(run: RunFolder, svgs: dict[str, str]) -> None:
    assert PLOTS["traffic"](run) == svgs["traffic"]


def test_matplotlib_is_left_as_it_was(run: RunFolder) -> None:
    before = dict(mpl.rcParams)
    plots.headline_svg(run)
    assert dict(mpl.rcParams) == before


class TestHeadline:
    def test_with_floor(self, svgs: dict[str, str]) -> None:
        found = texts(svgs["headline"])
        assert "loss above the entropy floor (nats/byte), 0 = the best any model can do" in found
        assert "72% of excess removed" in found
        assert {"server", "clinic / gpt2", "workshop / gpt-neox", "entropy floor"} < set(found)
        assert {"zero-shot", "standalone", "public-only", "centralized"} < set(found)

    def test_without_floor(self, tmp_path: Path) -> None:
        run = read_run(write_folder(tmp_path, floor=False, clients=1))
        found = texts(plots.headline_svg(run))
        assert "loss (nats/byte)" in found
        assert "\N{MINUS SIGN}0.187 nats/byte" in found
        assert not any("floor" in text for text in found)

    def test_worse_is_said(self, tmp_path: Path) -> None:
        run = read_run(_add(write_folder(tmp_path, clients=2), {"0": 0.4, "1": float("nan")}))
        found = texts(plots.headline_svg(run))
        assert "102% of excess added" in found
        assert "diverged" in found

    def test_saved(self, run: RunFolder, tmp_path: Path) -> None:
        svg, png = plots.save_headline(run, tmp_path / "headline")
        assert sorted(tmp_path.iterdir()) == [png, svg]
        assert ElementTree.parse(svg).getroot().tag == f"{SVG}svg"
        assert png.read_bytes().startswith(b"\x89PNG")

    def test_saved_without_metrics(self, tmp_path: Path) -> None:
        run = read_run(write_folder(tmp_path / "run", stages=()))
        assert plots.headline(run).axes == []


class TestCurves:
    def test_a_panel_per_model(self, svgs: dict[str, str]) -> None:
        found = texts(svgs["curves"])
        assert {"server", "clinic / gpt2", "bank / llama", "court / opt"} < set(found)
        assert {"standalone", "public-only", "centralized", "entropy floor"} < set(found)
        assert "round (0 = the untouched model)" in found

    def test_without_baselines(self, tmp_path: Path) -> None:
        run = read_run(write_folder(tmp_path, stages=("federated",), floor=False))
        found = texts(plots.curves(run))
        assert "round" in found
        assert not {"standalone", "public-only", "entropy floor", "zero-shot"} & set(found)

    def test_more_models_than_a_row_holds(self, tmp_path: Path) -> None:
        run = read_run(write_folder(tmp_path, clients=6, rounds=2))
        assert "bank / llama #5" in texts(plots.curves(run))


class TestHeatMap:
    def test_before_and_after(self, run: RunFolder, svgs: dict[str, str]) -> None:
        found = texts(svgs["heat_map"])
        assert {"alone", "federated", "clinic", "nats/byte"} < set(found)
        before = run.by_domain("2", "standalone")["bank"].excess
        assert f"{before:.3f}" in found

    def test_without_standalone(self, tmp_path: Path) -> None:
        run = read_run(write_folder(tmp_path, stages=("zero-shot", "federated"), clients=1))
        found = texts(plots.heat_map(run))
        assert "untouched" in found
        assert "alone" not in found

    def test_only_federated(self, tmp_path: Path) -> None:
        run = read_run(write_folder(tmp_path, stages=("federated",)))
        assert not {"untouched", "alone"} & set(texts(plots.heat_map(run)))

    def test_holes_and_diverged_cells(self, tmp_path: Path) -> None:
        domains = ("a long domain name", *"bcdefgh")
        folder = _add(write_folder(tmp_path, domains=domains, clients=2), {"1": float("nan")})
        lines = [line for line in _metrics(folder) if (line["model"], line["domain"]) != ("0", "b")]
        write_lines(folder / "metrics.jsonl", lines)
        found = texts(plots.heat_map(read_run(folder)))
        assert found.count("none") == 2
        assert found.count("nan") == 8


class TestTeachers:
    def test_up(self, svgs: dict[str, str]) -> None:
        found = texts(svgs["teachers_up"])
        assert {"clinic", "bank", "court", "workshop", "share of public samples"} < set(found)
        assert {"clinic / gpt2", "nobody", "round"} < set(found)

    def test_down(self, svgs: dict[str, str]) -> None:
        found = texts(svgs["teachers_down"])
        assert {"server", "nobody", "court / opt"} < set(found)

    def test_many_clients_share_a_colour(self, tmp_path: Path) -> None:
        run = read_run(write_folder(tmp_path, clients=17, rounds=2, domains=("a",)))
        up, down = message_plots.teachers_up(run), message_plots.teachers_down(run)
        assert "all other clients" in texts(up)
        assert len([text for text in texts(down) if "#" in text]) == 15

    def test_fills_repeat_with_hatches(self) -> None:
        fills = [category_fill(i) for i in range(15)]
        assert len(set(fills)) == 15
        assert fills[0].colour == fills[8].colour


def test_traffic_has_units(svgs: dict[str, str]) -> None:
    found = texts(svgs["traffic"])
    assert {"MB per round", "server to clients", "clients to server", "train.local"} < set(found)
    # No bytes cross the network there.
    assert "server.distill" not in found


def _metrics(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _add(folder: Path, more: dict[str, float]) -> Path:
    """Add losses to the federated stage of some models."""
    lines = _metrics(folder)
    for line in lines:
        if line["stage"] == "federated":
            line["loss"] += more.get(line["model"], 0.0)  # type: ignore[call-overload]
    write_lines(folder / "metrics.jsonl", lines)
    return folder

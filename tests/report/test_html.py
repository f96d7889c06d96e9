from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from fedfuse.errors import FedfuseError
from fedfuse.report import html
from fedfuse.report.html import write_report
from fedfuse.tracking.json_fields import clean
from tests.report.conftest import HOSTILE
from tests.report.folders import write_folder

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """A parsed page: balanced tags, the text inside each id, what a browser would fetch or run."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.text: dict[str, list[str]] = {"": []}
        self.attributes: list[tuple[str, str]] = []
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("id") or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1][0] != "style":
            for name in {"", *(name for _, name in self.open)}:
                self.text.setdefault(name, []).append(" ".join(data.split()))

    @property
    def sections(self) -> set[str]:
        known = {"results", "curves", "domains", "regressions", "teachers", "gates", "messages"}
        return (known | {"efforts", "failures", "settings"}) & self.text.keys()


def write_with(svgs: dict[str, str], folder: Path) -> Page:
    """The page of a folder whose plots are drawn already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "PLOTS", {name: lambda run, n=name: svgs[n] for name in svgs})
        return Page(write_report(folder))


@pytest.fixture(scope="module")
def page(folder: Path, svgs: dict[str, str]) -> Page:
    return write_with(svgs, folder)


@pytest.fixture(scope="module")
def hostile_page(hostile: Path, hostile_svgs: dict[str, str]) -> Page:
    return write_with(hostile_svgs, hostile)


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of words alone: plots take most of a report's time."""
    monkeypatch.setattr(html, "PLOTS", {name: lambda run: "" for name in html.PLOTS})


def test_the_path_and_nothing_else_is_left(folder: Path, page: Page) -> None:
    assert page.sections == {
        "results",
        "curves",
        "domains",
        "regressions",
        "teachers",
        "gates",
        "messages",
        "efforts",
        "settings",
    }
    kinds = ("metrics", "training", "messages", "teacher_shares", "gates")
    files = {"config.json", *(f"{kind}.jsonl" for kind in kinds), "report.html"}
    assert {path.name for path in folder.iterdir()} == files


def test_summary(page: Page) -> None:
    text = " ".join(page.text["summary"])
    assert "fell from 0.260 to 0.073 nats/byte above the entropy floor" in text


def test_results(page: Page) -> None:
    cells = page.text["results"]
    assert cells[:8] == [
        "Results",
        "model",
        "zero-shot",
        "standalone",
        "public-only",
        "federated",
        "centralized",
        "excess removed",
    ]
    start = cells.index("clinic / gpt2")
    assert cells[start : start + 5] == [
        "clinic / gpt2",
        "0.456",
        "+0.256 · 26%",
        "0.439",
        "+0.238 · 33%",
    ]
    assert "entropy floor" in cells
    assert "(own)" in cells


def test_messages_and_settings(page: Page) -> None:
    message_log = [text.replace("\N{NO-BREAK SPACE}", " ") for text in page.text["messages"]]
    assert {"By client", "By phase", "By round", "server.distill", "5 min 07 s"} < set(message_log)
    assert "failed" not in message_log
    settings = page.text["settings"]
    assert {"6467a4c", "builtin:opt", "2.8.0", "strategy", "fedmkt"} < set(settings)


def test_what_training_took(page: Page) -> None:
    """Of five rounds with two phases of 40 steps, and of one baseline."""
    cells = page.text["efforts"]
    start = cells.index("clinic / gpt2")
    assert cells[start : start + 12] == [
        *("clinic / gpt2", "standalone", "40", "320", "0", "0"),
        *("clinic / gpt2", "federated", "400", "3,200", "1,600", "5,000"),
    ]


def test_self_contained(page: Page) -> None:
    assert not {"script", "link", "img", "image", "iframe", "object"} & set(page.tags)
    assert page.tags.count("svg") == 7
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in {"href", "src", "xlink:href"}:
            assert value.startswith("#")
    assert "default-src 'none'" in page.source


def test_hostile_names_are_text(hostile_page: Page) -> None:
    page = hostile_page
    assert not {"script", "img"} & set(page.tags)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert "<script>" not in page.source
    for name in HOSTILE.values():
        assert clean(name) in page.text["results"]


def test_failures(hostile_page: Page) -> None:
    rows = hostile_page.text["failures"]
    assert rows[5:8] == [clean(HOSTILE["0"]), "train.local", "2, 3"]
    assert rows[8].startswith("RuntimeError: CUDA out of memory")
    assert "failed" in hostile_page.text["messages"]


@pytest.mark.usefixtures("no_plots")
def test_hostile_texts_besides_names(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    domains = (evil, "bank")
    write_folder(
        tmp_path,
        clients=1,
        rounds=1,
        domains=domains,
        commit=evil,
        versions={evil: evil},
        config={"name": evil, "strategy": evil, evil: evil},
    )
    page = Page(write_report(tmp_path))
    assert "script" not in page.tags
    assert evil in page.text[""]


def test_without_floor(tmp_path: Path) -> None:
    page = Page(
        write_report(write_folder(tmp_path / "run", floor=False, accuracy=False, clients=1))
    )
    assert not any("floor" in text for text in page.text[""])
    assert "change" in page.text["results"]
    assert "\N{MINUS SIGN}0.187" in page.text["results"]
    assert not any("%" in text or "accuracy" in text for text in page.text["results"])


def test_without_baselines(tmp_path: Path) -> None:
    page = Page(write_report(write_folder(tmp_path / "run", stages=("federated",), clients=1)))
    assert page.text["results"][1:4] == ["model", "federated", "server"]
    words = " ".join(page.text[""])
    assert not any(stage in words for stage in ("standalone", "public-only", "baselines"))
    assert "excess removed" not in words


def test_a_run_that_just_began(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, stages=(), status="running")
    (folder / "messages.jsonl").unlink()
    (folder / "teacher_shares.jsonl").unlink()
    for kind in ("gates", "training"):
        (folder / f"{kind}.jsonl").unlink()
    page = Page(write_report(folder))
    assert page.sections == {"settings"}
    assert "svg" not in page.tags


@pytest.mark.usefixtures("no_plots")
def test_many_clients_are_said_to_be_left_out(tmp_path: Path) -> None:
    domains = ("a", "b")
    page = Page(write_report(write_folder(tmp_path, clients=16, rounds=1, domains=domains)))
    assert "Plots show the first 15 of 16 clients, tables all of them." in page.text[""]
    assert "b / gpt-neox #15" in page.text["results"]


@pytest.mark.usefixtures("no_plots")
def test_a_model_that_dropped_out(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, clients=2)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if '"round": 5, "model": "1"' not in line]
    assert len(kept) == len(lines) - 4
    (folder / "metrics.jsonl").write_text("\n".join(kept))
    page = Page(write_report(folder))
    assert "bank / llama was last measured after round 4 of 5." in " ".join(page.text["results"])


@pytest.mark.usefixtures("no_plots")
def test_an_old_report_survives_a_crash(
    folder: Path, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(folder.iterdir())

    def fail(source: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(FedfuseError, match="disk full"):
        write_report(folder)
    assert sorted(folder.iterdir()) == before
    assert (folder / "report.html").read_text(encoding="utf-8") == page.source


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(FedfuseError, match="expected a run folder"):
        write_report(tmp_path)

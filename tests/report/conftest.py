from __future__ import annotations

from pathlib import Path

import pytest

from fedfuse.report.html import PLOTS
from fedfuse.tracking.run import RunFolder, read_run
from tests.report.folders import write_folder

HOSTILE = {
    "0": "<script>alert(1)</script>",
    "1": "$\\frac{a$ 病院 \x1b[31m\x00 [bold red]x[/bold red] \ud800",
    "2": '"><img src=x onerror=alert(2)> a name that goes on & on & on',
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("runs") / "full")


@pytest.fixture(scope="session")
def run(folder: Path) -> RunFolder:
    return read_run(folder)


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs") / "hostile"
    return write_folder(place, names=HOSTILE, failing="0", rounds=3)


@pytest.fixture(scope="session")
def svgs(run: RunFolder) -> dict[str, str]:
    """Every plot of the full run, drawn once for all tests."""
    return {name: draw(run) for name, draw in PLOTS.items()}


@pytest.fixture(scope="session")
def hostile_svgs(hostile: Path) -> dict[str, str]:
    run = read_run(hostile)
    return {name: draw(run) for name, draw in PLOTS.items()}

"""What is finished is kept, what was interrupted starts again, and documents get their tables."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from experiments.harness import DOCS, Study, experiment, markdown, mean_and_std, numbers, put_table

RAN: list[int] = []


def cell(seed: int) -> list[dict[str, Any]]:
    if seed == 2 and not RAN.count(2):
        RAN.append(seed)
        raise KeyboardInterrupt
    RAN.append(seed)
    return [{"seed": seed, "loss": seed / 2}]


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., None]:
    RAN.clear()

    @experiment("results.json")
    def study(
        seeds: str = "0,1", parallel: int = 1, output: Path = tmp_path, results: Path | None = None
    ) -> Study:
        return Study(
            cells={("cell", seed): partial(cell, seed) for seed in numbers(seeds)},
            folder="study",
            summarize=lambda cells: mean_and_std("loss", [one["loss"] for one in cells]),
            parallel=parallel,
        )

    return study


def test_a_study_goes_on_where_it_was_interrupted(
    command: Callable[..., None], tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(KeyboardInterrupt):
        command("0,1,2", results=path)
    assert not path.exists()
    command("0,1,2", results=path)
    assert RAN == [0, 1, 2, 2]
    found = json.loads(path.read_text())
    assert found["command"].endswith("tests.experiments.test_harness --seeds 0,1,2")
    assert found["cells"] == [{"seed": n, "loss": n / 2} for n in range(3)]
    assert found["summary"] == {"loss": 0.5, "loss_std": 0.5}
    assert sum(found["cells_by_commit"].values()) == 3


def of_process(number: int) -> list[dict[str, Any]]:
    return [{"number": number, "process": os.getpid(), "threads": torch.get_num_threads()}]


def test_cells_in_several_processes_share_the_cores(tmp_path: Path) -> None:
    """The rows are in the order of the cells, whoever is ready first."""
    study = Study(
        cells={("cell", number): partial(of_process, number) for number in range(4)},
        folder="x",
        summarize=lambda rows: {},
        parallel=2,
    )
    found = study.run(tmp_path)["cells"]
    assert [row["number"] for row in found] == [0, 1, 2, 3]
    assert os.getpid() not in {row["process"] for row in found}
    assert {row["threads"] for row in found} == {max(1, (os.cpu_count() or 1) // 2)}


def test_pictures_are_small() -> None:
    assert (DOCS / "wire.md").exists()
    for picture in (*DOCS.glob("*.svg"), *DOCS.glob("selection/*.svg")):
        assert picture.stat().st_size < 100_000, picture
        assert len(picture.read_text().splitlines()) < 600, picture
        assert ElementTree.parse(picture).getroot().tag.endswith("svg")


def test_a_table_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "doc.md"
    path.write_text("a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n")
    put_table(path, markdown(("name", "loss"), [("one", "0.5")]), "x")
    assert path.read_text() == (
        "a\n<!-- x: begin -->\n| name | loss |\n|---|---:|\n| one | 0.5 |\n<!-- x: end -->\nb\n"
    )

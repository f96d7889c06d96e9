"""The arithmetic of experiments/prompts, and one of its runs made tiny."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from experiments import federations
from experiments.federations import run_once
from experiments.prompts import many
from experiments.prompts import run as comparison
from experiments.prompts import summary as sums
from experiments.prompts.run import ABLATIONS, MAIN, PromptRun, measure, plan
from experiments.prompts.world import COLUMNS, summarize, table, wordings
from experiments.prompts.world import measure as measure_world
from fedfuse.builtin.prompt_lexicon import vocabulary
from fedfuse.builtin.prompt_world import WORLD_TASKS, world_task
from fedfuse.config.run_config import Scalar, parse
from tests.prompt_federations import KEYS
from tests.prompt_federations import tiny_world as tiny_world


class Says:
    """Answers ``t`` to whatever names a form, and nothing otherwise."""

    name = "says"

    def answer(self, texts: list[str]) -> list[str]:
        return ["t" if "code" in text.split() else "" for text in texts]


def test_wordings_are_in_the_vocabulary() -> None:
    for name in WORLD_TASKS:
        kinds = wordings(world_task(name))
        assert tuple(kinds) == COLUMNS
        assert {w for prompts in kinds.values() for p in prompts for w in p.split()} <= set(
            vocabulary()
        )


def test_measured_accuracies() -> None:
    """Of four labels one is right, and of four words for the form one is understood."""
    task = world_task("goods-code")
    found = measure_world(Says(), task, task.draw(40, Random(0), set()))
    assert found == {
        "guess": 0.25,
        "vague": 0.0,
        "weak hint": 0.0,
        "strong hint": 0.0,
        "form": 0.0625,
        "strong hint and form": 0.0625,
        "good": 0.25,
    }


def test_summary_and_table() -> None:
    def cell(task: str, seed: int, value: float) -> dict[str, object]:
        shares = dict.fromkeys(("guess", *COLUMNS), value)
        return {"model": "builtin:instructed-x", "task": task, "seed": seed, **shares}

    found = summarize([cell("a", 0, 0.1), cell("a", 1, 0.3), cell("b", 0, 0.5), cell("b", 1, 0.9)])
    means = {task: row["good"] for task, row in found["builtin:instructed-x"].items()}
    assert means == pytest.approx({"a": 0.2, "b": 0.7, "all": 0.45})
    assert table(found).splitlines()[2].startswith("| x | a | 20 | 20 |")


def cell(variant: str, budget: int, accuracy: float, **more: Any) -> dict[str, Any]:
    """What a run may say."""
    return {
        "variant": variant,
        "skew": "iid",
        "budget": budget,
        "seed": 0,
        "manual": 0.1,
        "accuracy": accuracy,
        "queries": 30 * budget,
        "standalone": [],
        "centralized": [],
        "chosen": ["aggregated", "previous"],
        "bytes_per_client_round": 700.4,
        "second": {"manual": 0.2, "accuracy": accuracy / 2},
        **more,
    }


CELLS = [
    cell("feddtpt", 64, 0.4, standalone=[0.1, 0.2], centralized=[0.3]),
    cell("feddtpt", 128, 0.8, standalone=[0.3, 0.5], centralized=[0.85]),
    cell("best-client", 128, 0.7),
    cell("random", 128, 0.9),
]


def test_summary_of_the_comparison(tmp_path: Path) -> None:
    found = sums.summarize(CELLS, 128)
    assert found["gain_over_vague_points"] == 70
    assert found["gain_over_local_points"] == 40
    assert found["gap_to_centralized_points"] == 5
    assert found["transfer_gain_points"] == 20
    assert found["bytes_per_client_round"] == 700
    assert found["aggregated_was_chosen"] == 0.5
    assert found["gain_over_best_client_points"] == {"iid": {"128": 10}}
    assert list(found["ablations"]["iid"]) == [
        *("random", "centralized", "feddtpt", "best-client", "standalone")
    ]
    assert sums.table(found).splitlines()[2:] == [
        "| feddtpt | 40 ± 0 | 80 ± 0 |",
        "| standalone | 15 ± 0 | 40 ± 0 |",
        "| centralized | 30 ± 0 | 85 ± 0 |",
        "| best-client |  | 70 ± 0 |",
        "| random |  | 90 ± 0 |",
    ]
    twice = sums.summarize([*CELLS, CELLS[1] | {"seed": 1, "accuracy": 0.6}], 128)
    assert twice["gain_over_vague_points"] == 60
    assert twice["gain_over_vague_points_std"] == pytest.approx(14.14)
    assert sums.table(twice).splitlines()[2] == "| feddtpt | 40 ± 0 | 70 ± 14 |"
    sums.draw({"cells": CELLS}, tmp_path)
    assert (tmp_path / "prompts.svg").stat().st_size > 5000


def test_the_plan_has_every_run_once_and_all_of_its_keys_are_allowed() -> None:
    cells = plan([0, 1], [64, 128], 64)
    assert len(set(cells)) == len(cells)
    assert len(cells) == 2 * 2 * (2 * len(MAIN) + len(ABLATIONS))
    for cell in cells:
        parse(cell.keys(10))


def test_a_run_is_measured_and_not_run_again(
    tmp_path: Path, tiny_world: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strategies.app.write_report", lambda folder: folder)
    monkeypatch.setattr("strategies.app.save_headline", lambda run, stem: None)
    monkeypatch.setattr(comparison, "second", lambda run, prompt: len(prompt) / 100)
    keys = {key.replace("__", ".").replace("_", "-"): value for key, value in KEYS.items()}
    shared: dict[str, Scalar] = {**keys, "output": str(tmp_path), "rounds": 1}
    one = PromptRun("feddtpt", "dirichlet", 24, 0)
    found = measure(run_once({**shared, **one.keys(2)}, 2), one)
    assert (found["skew"], found["budget"], found["manual"]) == ("dirichlet", 24, 0.45)
    assert len(found["rounds"]) == len(found["chosen"]) == len(found["centralized"]) == 1
    assert len(found["own"]) == len(found["standalone"]) == 2
    assert 0 < found["bytes_per_client_round"] < 1000
    assert found["second"]["manual"] == len("decide the number") / 100
    monkeypatch.setattr(federations, "run_in_process", lambda *_: pytest.fail("run again"))
    assert measure(run_once({**shared, **one.keys(2)}, 2), one) == found


def test_gains_are_within_a_seed() -> None:
    def cell(variant: str, skew: str, seed: int, *accuracy: float) -> dict[str, Any]:
        return {"variant": variant, "skew": skew, "seed": seed, "accuracy": list(accuracy)}

    cells = [
        cell("feddtpt", "iid", 0, 0.5, 0.9),
        cell("best-client", "iid", 0, 0.5, 0.7),
        cell("best-client", "iid", 1, 0.2, 0.4),
        cell("feddtpt", "iid", 1, 0.1, 0.4),
        cell("feddtpt", "dirichlet", 0, 0.3, 0.6),
        cell("best-client", "dirichlet", 0, 0.3, 0.5),
    ]
    found = many.summarize(cells)
    rows = {(row["skew"], row["round"]): row for row in found["by_round"]}
    assert rows["iid", 1]["gain_points"] == -5
    assert rows["iid", 1]["gain_standard_error"] == 5  # of 0 and -10
    assert rows["iid", 2] == {
        "skew": "iid",
        "round": 2,
        "feddtpt": 0.65,
        "best-client": 0.55,
        "gain_points": 10,
        "gain_standard_error": 10,
        "better": 1,
        "worse": 0,
        "pairs": 2,
    }
    assert found["gain_points"] == rows["both", 2]["gain_points"] == 10
    assert "| iid | 1 | 30 | 35 | -5 ± 5 | 0 | 1 | 2 |" in many.table(found)
    assert len(many.table(found).splitlines()) == 2 + len(rows)

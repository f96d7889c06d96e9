"""The benchmark of rounds on a tiny model: the same path, and what it reports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import passes, rounds
from fedfuse.builtin import models as builtin
from tests.federations import VOCABULARY

QUESTIONS = ["red or blue, what is the sky", "four or five, what is two and two", "who sold it"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of models and material, in which everything is tiny."""
    models, material = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("material")
    small: dict[str, Any] = {"width": 16, "layers": 4, "steps": 5, "samples_per_domain": 60}
    recipe = replace(builtin.RECIPES["llama"], vocab_size=VOCABULARY["llama"], **small)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(builtin.RECIPES, "llama", recipe)
        (models / rounds.MODEL).symlink_to(builtin.build("builtin:llama"))
    for name in (passes.TEXTS, *passes.QUESTIONS):
        options = [" a red lamp", " the sky", " nothing at all", f" {name}"]
        lines = [
            {"question": f"{QUESTIONS[i % 3]} {i}?", "options": options, "label": i % 4}
            for i in range(80)
        ]
        (material / "datasets" / name).mkdir(parents=True)
        text = "\n".join(map(json.dumps, lines))
        (material / "datasets" / name / "train.jsonl").write_text(text)
    return models, material


def test_passes(folders: tuple[Path, Path]) -> None:
    models, material = folders
    found = passes.measure_passes(models / rounds.MODEL, material, repeats=2, quick=True)
    precise = [f"{what}_bfloat16{p}_over_float32" for what in ("scoring", "training", "loss")
               for p in ("", "_products")]  # fmt: skip
    options = ["option_scoring_over_prompt", "option_scoring_over_prompt_arc_challenge"]
    tokens = [f"{name}_tokens" for name in options]
    others = ["extraction_over_forward", "pass_cost_tokens"]
    assert set(found.ratios) == {*precise, *options, *tokens, *others}
    assert {len(each) for each in found.seconds.values()} == {2}
    for name in tokens:
        assert 0.5 < found.ratios[name] < 4  # prompts that begin alike are shared too
    for name in precise[-2:]:
        assert found.ratios[name] == pytest.approx(1, abs=0.05)
        assert found.ratios[name] != 1


def test_a_federation_in_each_way(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = {"everywhere": {"local.steps": 1}, "uncached": {"rounds": 1}, "cached": rounds.QUARTER}
    runs: list[dict[str, Any]] = []
    whole = rounds.federate

    def federate(code: Path, keys: Any, clients: int) -> rounds.Federated:
        runs.append(dict(keys))
        if len(runs) == len(ways):
            return whole(code, keys, clients)
        return rounds.Federated(10.0, 0, {"server": 1.0, "0": 1.0, "1": 1.0}, {})

    monkeypatch.setattr(rounds, "WAYS", ways)
    monkeypatch.setattr(rounds, "federate", federate)
    [found] = rounds.measure_federations(*folders, quick=True)
    assert [run["local.steps"] for run in runs] == [1, 2, 2]
    assert runs[2]["clients.lora-layers"] == 0.25
    raw = found.raw["cached"]
    assert set(raw["losses"]) == {"server", "0", "1"}
    assert raw["phases"]["train.distill"] > 0
    assert found.results["cached_over_uncached_time"] == pytest.approx(
        raw["seconds"] / 10, abs=0.01
    )
    assert found.results["cached_loss_off"] == max(abs(loss - 1) for loss in raw["losses"].values())
    assert found.results["cached_megabytes"] > 0


def test_the_quickstart_of_two_commits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seconds = iter([10.0, 8.0, 20.0, 14.0, 10.0, 9.0])

    def federate(code: Path, keys: Any, clients: int) -> rounds.Federated:
        assert clients == 4
        taken = next(seconds)
        before = code == tmp_path.resolve()
        return rounds.Federated(taken, 0, {}, {"train.distill": 4.0 if before else 3.0})

    monkeypatch.setattr(rounds, "federate", federate)
    found = rounds.measure_quickstart(tmp_path, repeats=3, quick=False)
    assert found.results == {"quickstart_over_before": 0.8, "client_distill_over_before": 0.75}

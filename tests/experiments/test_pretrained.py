"""The choice of settings for pretrained models, on trials whose outcome is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.rounds import Federated
from experiments.pretrained import layers, run
from experiments.pretrained.run import Choice, Setting, Trials, ranking, table

AFTER = {  # loss by rate, in the phase of labels and of distillation
    "labels": {3e-4: 0.5, 1e-3: 0.2, 3e-3: 0.4},
    "distill": {3e-4: 0.1, 1e-3: 0.3, 3e-3: 0.3},
}


def known(setting: Setting, model: str, data: str, seed: int) -> list[dict[str, Any]]:
    """A trial as if it had run: longer phases are worse, and a label weight of 0.6 is best."""
    phase = setting.phase.split()[0]
    after = AFTER[phase][setting.rate] * (1 + abs(setting.steps - 30) / 1000)
    after *= 1 if phase == "labels" else 1 - setting.label_weight / 10
    hard = 2 if data == "trec" else 1  # all that is compared is ratios
    about = {"seed": seed, "data": data, "model": model, "setting": str(setting)}
    return [about | {"before": hard, "after": hard * after}]


def test_each_setting_is_chosen_after_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trials, "run", lambda _self, *given: known(*given))
    choice = Choice(Trials(tmp_path, tmp_path, tmp_path), [100, 101], 1)
    found = choice.run(tmp_path)
    chosen = found["summary"]["chosen"]
    assert chosen == {"labels": "labels 0.001 30 1", "distill": "distill from 0.001 0.0003 80 0.6"}
    # Three of each, of which the first of the next is the best of the one before; 2 x 2 x 2 cells.
    assert len(found["cells"]) == (3 + 2 + 3 + 2) * 8
    rows = table(found["summary"]).splitlines()[2:]
    assert len(rows) == 3 + 2 + 3 + 2
    bold = [row for row in rows if row.startswith("| **")]
    assert [row.split(" | ")[:4] for row in bold] == [
        ["| **labels**", "0.001", "30", "1"],
        ["| **distillation**", "0.0003", "80", "0.6"],
    ]
    assert choice.run(tmp_path) == found  # what is finished is not run again


def test_a_hard_data_set_counts_no_more_than_an_easy_one() -> None:
    rows = [
        {"setting": "a", "before": 4.0, "after": 2.0},
        {"setting": "a", "before": 1.0, "after": 0.01},
        {"setting": "b", "before": 4.0, "after": 1.0},
        {"setting": "b", "before": 1.0, "after": 0.02},
    ]
    assert ranking(rows)["a"] == pytest.approx(ranking(rows)["b"])


def test_two_real_data_sets_and_two_models() -> None:
    assert len(run.DATA) >= 2
    assert set(run.TEACHER_OF) == set(run.TEACHER_OF.values()) == set(run.MODELS)


def test_numbers_of_layers_are_compared_on_the_same_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def known_run(_code: Path, keys: dict[str, Any], clients: int) -> Federated:
        asked.append(keys)
        part = keys["clients.lora-layers"] or 1
        assert keys["server.lora-layers"] == keys["clients.lora-layers"]
        loss = keys["seed"] * (2 - part)
        losses = {"server": loss, **{str(n): loss + n for n in range(clients)}}
        return Federated(100 * part, int(1e6 * (part < 1)), losses, {})

    monkeypatch.setattr(layers, "federate", known_run)
    rows = [
        row
        for seed in (1, 2)
        for part in layers.LAYERS
        for row in layers.measure(tmp_path, tmp_path, seed, part)
    ]
    found = layers.summarize(rows)
    assert found["all"]["time_over_all"] == 1
    assert found["all"]["megabytes"] == 0
    half = found["last half"]
    assert half["time_over_all"] == 0.5
    assert half["megabytes"] == 1
    assert half["server"] == pytest.approx(2.25)
    assert half["server_over_all"] == pytest.approx(0.5)
    assert half["server_over_all_std"] == 0
    assert half["clients"] == pytest.approx(2.75)
    assert len(layers.table(found).splitlines()) == 2 + len(layers.LAYERS)
    assert len(asked) == 8

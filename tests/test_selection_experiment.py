"""The selection experiment's arithmetic, and one tiny trial's material."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.selection.material import SCENARIOS, cached, with_noise
from experiments.selection.run import summarize
from experiments.selection.trial import VARIANTS
from fedfuse.data.sample import Sample


def cells(variant: str, after: tuple[float, float], seed: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "seed": seed,
            "scenario": "default",
            "variant": variant,
            "domain": domain,
            "before": 0.3,
            "after": loss,
            "noise": 0.01,
        }
        for domain, loss in zip(("bank", "clinic"), after, strict=True)
    ]


def test_summary_by_hand() -> None:
    found = summarize(
        cells("min-ce", (0.34, 0.2))
        + cells("oracle", (0.15, 0.15))
        + cells("trained", (0.17, 0.15))
    )
    assert found["server_loss"]["default"] == {"min-ce": 0.27, "oracle": 0.15, "trained": 0.16}
    assert found["interference_rate"]["default"] == {"min-ce": 0.5, "oracle": 0, "trained": 0}
    assert found["interference_depth"]["default"]["min-ce"] == pytest.approx(0.04)
    share = found["share_of_gap_mince_to_oracle"]["default"]
    assert share == {"min-ce": 0, "oracle": 1, "trained": pytest.approx(0.11 / 0.12, abs=1e-4)}


def test_without_an_oracle_there_is_no_share() -> None:
    assert summarize(cells("min-ce", (0.3, 0.3)))["share_of_gap_mince_to_oracle"] == {}


def test_noise_changes_answers_alone() -> None:
    samples = [Sample(f"the bank note {n}", " xyz.", "bank") for n in range(400)]
    noisy = with_noise(samples, 0.4, seed=0)
    assert [s.prompt for s in noisy] == [s.prompt for s in samples]
    changed = np.mean([s.answer != " xyz." for s in noisy])
    assert 0.33 < changed < 0.47
    assert with_noise(samples, 0.0, seed=0) == samples
    assert with_noise(samples, 0.4, seed=0) == noisy


def test_arrays_are_made_once(tmp_path: Path) -> None:
    made = []

    def make() -> dict[str, np.ndarray]:
        made.append(1)
        return {"a": np.arange(3)}

    for _ in range(2):
        assert cached(tmp_path, {"seed": 0}, make)["a"].tolist() == [0, 1, 2]
    cached(tmp_path, {"seed": 1}, make)
    assert len(made) == 2


def test_names_are_those_that_results_speak_of() -> None:
    assert {"min-ce", "oracle", "trained", "uniform", "untrained"} <= set(VARIANTS)
    for name, scenario in SCENARIOS.items():
        assert name == scenario.name
        assert len(scenario.steps) == len(scenario.private_noise)

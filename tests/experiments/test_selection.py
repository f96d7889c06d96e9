"""The selection experiment's arithmetic and pictures, and its worlds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.selection.draw import ablations, draw
from experiments.selection.material import cached, config_of, dealt, with_noise
from experiments.selection.run import plan
from experiments.selection.scenarios import SCENARIOS
from experiments.selection.summary import noise_of, summarize, training_noise, unevenness
from experiments.selection.variants import VARIANTS
from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError


def cells(variant: str, after: tuple[float, ...], seed: int = 0) -> list[dict[str, Any]]:
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
        + cells("trained", (0.17, 0.15)),
        [],
    )
    assert found["server_loss"]["default"] == {"min-ce": 0.27, "oracle": 0.15, "trained": 0.16}
    assert found["interference_rate"]["default"] == {"min-ce": 0.5, "oracle": 0, "trained": 0}
    assert found["interference_depth"]["default"]["min-ce"] == pytest.approx(0.04)
    share = found["share_of_gap_mince_to_oracle"]["default"]
    assert share == {"min-ce": 0, "oracle": 1, "trained": pytest.approx(0.11 / 0.12, abs=1e-4)}


def test_without_an_oracle_there_is_no_share() -> None:
    assert summarize(cells("min-ce", (0.3, 0.3)), [])["share_of_gap_mince_to_oracle"] == {}


def test_ablations_are_compared_seed_by_seed() -> None:
    rows = [
        {**cell, "scenario": "label-noise"}
        for seed, ours, other in ((0, 0.2, 0.22), (1, 0.1, 0.12))
        for cell in cells("trained", (ours, ours), seed) + cells("avg-ce", (other, other), seed)
    ]
    found = summarize(rows, [])["ablations"]["label-noise"]
    assert set(found) == {"trained", "avg-ce"}
    assert found["avg-ce"]["change"] == pytest.approx((0.1 + 0.2) / 2)
    assert found["avg-ce"]["change_std"] == pytest.approx(np.std([0.1, 0.2], ddof=1), abs=1e-5)
    assert found["trained"]["change"] == found["trained"]["change_std"] == 0
    table = ablations({"ablations": {"label-noise": found}})
    assert "| label-noise | avg-ce | 0.1700 | +15.0% ± 7.1% |  |  |" in table
    assert summarize(cells("trained", (0.2, 0.2)), [])["ablations"] == {}


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
        for per_client in (scenario.private_noise, scenario.joins):
            assert len(per_client) in (0, scenario.clients)


def test_noise_of_training_is_measured_with_another_order() -> None:
    both = cells("oracle", (0.30, 0.20)) + cells("oracle-again", (0.32, 0.20))
    sigma = training_noise(both)
    assert sigma == pytest.approx(0.02 / 2)  # root of the mean of 0.02^2 / 2 and 0
    assert noise_of(both[0], sigma) == pytest.approx(np.hypot(0.01, 1.645 * sigma))
    # A rise of 0.015 is beyond the samples' noise alone, not beyond both.
    rates = summarize(both + cells("min-ce", (0.315, 0.2)), [])["interference_rate"]
    assert rates["default"]["min-ce"] == 0
    assert training_noise(cells("oracle", (0.3, 0.2))) == 0


def test_the_plan() -> None:
    units = plan([7, 8, 9, 6, 5, 4])
    assert len(units) == len(set(units))
    assert {(seed, "default", "trained") for seed in (7, 8, 9, 6, 5)} <= set(units)
    seeds = {name: {seed for seed, where, _ in units if where == name} for name in SCENARIOS}
    assert seeds["trec"] == {7, 8, 9, 6, 5}
    assert seeds["overlap"] == {7, 8, 9}
    assert (7, "trec", "promoted") not in units
    assert (6, "default", "promoted") in units
    assert (6, "label-noise", "avg-ce") in units
    assert (6, "default", "avg-ce") not in units


def test_clients_overlap_by_half_of_what_each_has() -> None:
    private = [[Sample(f"{name}{i}", "x") for i in range(4)] for name in "abc"]
    one, other, third = dealt(private, overlap=True)
    assert [s.prompt for s in one] == ["a0", "a1", "a2", "a3", "b0", "b1"]
    assert [s.prompt for s in other] == ["b0", "b1", "b2", "b3", "a0", "a1"]
    assert third == private[2]
    assert dealt(private, overlap=False) == private


def test_what_the_default_rule_lacks_to_the_best() -> None:
    rows = [
        row
        for seed, mine, best, shown in ((0, 0.2, 0.19, 0.18), (1, 0.3, 0.28, 0.29))
        for row in (
            *cells("neighbours", (mine, mine), seed),
            *cells("trained", (best, best), seed),
            *cells("trained-shown", (shown, shown - 0.02), seed),
            *cells("oracle", (0.1, 0.1), seed),
        )
    ]
    found = summarize(rows, [])["default_rule"]["default"]
    assert found == {
        "rule": "neighbours",
        "best": "trained-shown",
        "behind": pytest.approx(0.025),
        "behind_std": pytest.approx(0.01 / 2**0.5, abs=1e-5),
        "within_noise": False,
        "blind": {
            "best": "trained",
            "behind": pytest.approx(0.015),
            "behind_std": pytest.approx(0.01 / 2**0.5, abs=1e-5),
            "within_noise": False,
        },
    }


def test_unevenness_is_that_of_the_clients() -> None:
    assert unevenness({"bank": [0.5, 0.25, 0.25], "clinic": [0.0, 0.5, 0.5]}) == 0
    assert unevenness({"bank": [0.2, 0.8, 0, 0]}) == pytest.approx(2)  # one of three


def test_a_client_may_come_later() -> None:
    late = SCENARIOS["late"]
    assert [late.present(3, number) for number in (1, 2, 3)] == [False, False, True]
    assert late.present(0, 1)


def test_real_text_needs_its_folder() -> None:
    with pytest.raises(FedfuseError, match=r"scenario 'trec': expected --material"):
        config_of(0, SCENARIOS["trec"], None)


def test_pictures_are_drawn(tmp_path: Path) -> None:
    found = [*cells("min-ce", (0.34, 0.2)), *cells("trained", (0.17, 0.15))]
    choices = [
        {
            "seed": 0,
            "scenario": "default",
            "variant": "trained",
            "round": 1,
            "right": 0.9,
            "gate_loss": [2.0, 1.5],
            "shares": {"bank": [0.1, 0.9, 0.0], "clinic": [0.0, 0.0, 1.0]},
        }
    ]
    frame = {"cells": found, "choices": choices, "summary": summarize(found, choices)}
    (path,) = draw(frame, tmp_path)
    assert path.name == "default.svg"
    assert path.read_text().startswith("<?xml")

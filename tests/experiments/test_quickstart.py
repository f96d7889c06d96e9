"""The experiments' arithmetic, on run folders made up by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from experiments import federations
from experiments.federations import Federations, traffic
from experiments.harness import experiment, name_of
from experiments.quickstart import settings, strategies
from experiments.quickstart.controls import shuffle
from experiments.quickstart.run import summarize
from fedfuse.knowledge.record import Knowledge
from fedfuse.tracking.run import RunFolder, read_run
from tests.report.folders import write_folder, write_lines

FLOOR = 0.2
# Losses above the floor by (stage, round, model), alike in both domains; client 0 owns a, 1 owns b.
ABOVE = {
    ("zero-shot", 0, "server"): 0.4,
    ("zero-shot", 0, "0"): 0.4,
    ("zero-shot", 0, "1"): 0.4,
    ("standalone", 1, "0"): 0.2,
    ("standalone", 1, "1"): 0.1,
    ("public-only", 2, "server"): 0.35,
    ("public-only", 2, "0"): 0.2,
    ("public-only", 2, "1"): 0.2,
    ("federated", 1, "server"): 0.3,
    ("federated", 2, "server"): 0.2,
    ("federated", 2, "0"): 0.15,
    ("federated", 2, "1"): 0.05,
}


def make(
    folder: Path, more: Mapping[tuple[str, int, str], float] | None = None, **changes: float
) -> RunFolder:
    """A run; ``server`` overrides the server's last loss."""
    write_folder(folder, clients=2, rounds=2, domains=("a", "b"))
    about = json.loads((folder / "config.json").read_text())
    about["floor"] = {"loss": {"a": FLOOR, "b": FLOOR}, "accuracy": {"a": 0.7, "b": 0.7}}
    about["config"] |= {"local.steps": 30, "server-distill.steps": 40, "client-distill.steps": 20}
    (folder / "config.json").write_text(json.dumps(about))
    above = (
        ABOVE
        | dict(more or {})
        | {("federated", 2, model): value for model, value in changes.items()}
    )
    fields = ("stage", "round", "model")
    write_lines(
        folder / "metrics.jsonl",
        [
            dict(zip(fields, key, strict=True))
            | {"domain": domain, "loss": FLOOR + value, "accuracy": 1 - value, "samples": 5}
            | ({"noise": 0.01} if key[0] == "federated" else {})
            for key, value in above.items()
            for domain in ("a", "b")
        ],
    )
    return read_run(folder)


@pytest.fixture
def runs(tmp_path: Path) -> dict[tuple[str, int], RunFolder]:
    return {
        ("default", 0): make(tmp_path / "default"),
        ("distillation-off", 0): make(tmp_path / "off", server=0.36),
        ("knowledge-shuffled", 0): make(tmp_path / "shuffled", server=0.4),
    }


def test_headline_fractions(runs: dict[tuple[str, int], RunFolder]) -> None:
    found = summarize(runs, [0])
    expected = {
        "server_excess_reduction": 0.5,  # 0.4 to 0.2
        "clients_min_alldomain_excess_reduction": 0.25,  # of 0.2 to 0.15 and 0.1 to 0.05
        "clients_excess_reduction_public_only": 0.5,  # of 0.2 to 0.15, of 0.2 to 0.05
        "clients_min_excess_reduction_public_only": 0.25,
        "clients_max_own_domain_excess_increase": -0.25,
        "clients_min_accuracy_gain": 0.05,
        "public_only_share_of_fall": 0.25,  # 0.05 of 0.2
        "server_accuracy_zero_shot": 0.6,
        "server_accuracy_federated": 0.8,
        "server_excess_reduction_distillation_off": 0.1,
        "server_excess_reduction_knowledge_shuffled": 0.0,
    }
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-4), key


def test_settings_are_judged_by_what_they_remove_and_what_they_take(tmp_path: Path) -> None:
    alone = {("public-only", 2, "0"): 0.4, ("public-only", 2, "1"): 0.3}
    first, second = (
        make(tmp_path / name, alone, server=server) for name, server in (("a", 0.2), ("b", 0.1))
    )
    found = settings.summarize({("default", 100): first, ("default", 101): second})
    assert found == {
        "default": {
            "server": 0.625,  # of 0.4, 0.2 and 0.3 are gone
            "server_public_only": 0.125,  # of 0.4, 0.05
            "clients": 0.75,  # 0.25 and 0.35 of 0.4
            "clients_public_only": 0.125,
            "own_domain": -0.25,
            "steps": 2 * (40 + 2 * (30 + 20)),
        }
    }
    assert settings.table(found).splitlines()[2] == (
        "| default | 62% | 12% | 75% | 12% | -25% | 280 |"
    )


def test_standard_deviations_need_two_seeds(runs: dict[tuple[str, int], RunFolder]) -> None:
    assert not any(key.endswith("_std") for key in summarize(runs, [0]))
    both = runs | {(variant, 1): run for (variant, _), run in runs.items()}
    found = summarize(both, [0, 1])
    assert found["server_excess_reduction_std"] == 0


def test_a_run_without_a_stage_is_no_result(runs: dict[tuple[str, int], RunFolder]) -> None:
    run = runs["default", 0]
    lines = (run.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = "".join(line for line in lines if "standalone" not in line)
    (run.folder / "metrics.jsonl").write_text(kept)
    with pytest.raises(SystemExit, match="has no standalone of 0"):
        summarize(runs | {("default", 0): read_run(run.folder)}, [0])


def test_the_results_have_their_frame(
    runs: dict[tuple[str, int], RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    named = {name_of(key): run for key, run in runs.items()}
    monkeypatch.setattr(federations, "simulate", lambda folder, *_, **__: named[folder.name])

    @experiment("results.json")
    def study(seeds: str = "0", output: Path = tmp_path, results: Path = path) -> Federations:
        return Federations(
            cells=dict.fromkeys(runs, ()), folder="x", summarize=lambda runs: {"a": 1}, parallel=2
        )

    study()
    found = json.loads(path.read_text())
    assert found["command"] == "python -m tests.experiments.test_quickstart --seeds 0"
    assert found["seeds"] == [0]
    assert {"command", "seeds", "commit", "versions", "seconds", "peak_memory_mb"} <= set(found)
    assert found["summary"] == {"a": 1}
    assert len(found["cells"]) == 3 * 2 * len(ABOVE)
    assert found["cells"][0] == {
        "variant": "default",
        "seed": 0,
        "stage": "zero-shot",
        "round": 0,
        "model": "server",
        "domain": "a",
        "loss": 0.6,
        "accuracy": 0.6,
    }
    run = runs["default", 0]
    message_log = [
        json.loads(line) for line in (run.folder / "messages.jsonl").read_text().splitlines()
    ]
    total = sum(line["sent_bytes"] + line["received_bytes"] for line in message_log)
    assert found["wire_bytes"]["default-0"] == traffic(run) == total > 0


def test_shuffling_deals_rows_of_one_rank() -> None:
    offsets = np.array([0, 3, 5, 9, 12])
    rows = 12
    ranks = np.concatenate([np.arange(n) for n in np.diff(offsets)])
    knowledge = Knowledge(
        offsets=offsets,
        indices=np.arange(rows)[:, None],  # a row's number travels with it
        logprobs=-np.arange(rows, dtype=np.float32)[:, None] / 100,
        tail_logprob=np.full(rows, -5, dtype=np.float32) - np.arange(rows, dtype=np.float32),
        label_logprob=-np.ones(rows, dtype=np.float32),
        label_bytes=np.full(4, 3),
        tokenizer="t",
        public="p",
    )
    labels = np.array([0, *range(2, 12), 1])
    found = shuffle(knowledge, labels, seed=1)
    came_from = found.indices[:, 0]
    assert sorted(came_from) == list(range(rows))
    assert (came_from != np.arange(rows)).any()
    np.testing.assert_array_equal(ranks[came_from], ranks)
    np.testing.assert_allclose(found.logprobs[:, 0], -came_from / 100, atol=1e-6)
    np.testing.assert_allclose(found.tail_logprob, -5 - came_from)
    np.testing.assert_array_equal(found.offsets, offsets)
    np.testing.assert_array_equal(found.label_bytes, knowledge.label_bytes)
    assert (found.tokenizer, found.public) == ("t", "p")
    np.testing.assert_array_equal(shuffle(knowledge, labels, 1).indices, found.indices)
    # Claims follow from the new distributions: the label's entry, or what is left for it.
    claims = np.where(came_from == labels, -came_from / 100, -5 - came_from)
    np.testing.assert_allclose(found.label_logprob, claims, atol=1e-6)


def test_strategies_are_compared_above_the_floor(tmp_path: Path) -> None:
    runs = [make(tmp_path / "a"), make(tmp_path / "b", server=0.3)]
    found = strategies.summarize(runs)
    assert found["server_excess"] == pytest.approx(0.25)
    assert found["server_excess_std"] == pytest.approx(0.0707, abs=1e-4)
    assert found["clients_excess"] == pytest.approx(0.1)
    assert found["own_excess"] == pytest.approx(0.1)
    assert found["interference_rate"] == 0

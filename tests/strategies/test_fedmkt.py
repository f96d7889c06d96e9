"""A whole federation: complete on disk, reproducible, and its adapters load elsewhere."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fedfuse.algorithms.effort import Effort
from fedfuse.builtin.models import build
from fedfuse.config.run_config import parse
from fedfuse.evaluation.losses import sample_nll
from fedfuse.evaluation.scoring import Evaluator
from fedfuse.factory.data import load_splits
from fedfuse.models.causal_lm import CausalLM
from fedfuse.tokenizers.load import load_tokenizer
from fedfuse.tracking.checkpoints import strip_prefix
from fedfuse.tracking.run import read_run
from strategies import fedmkt
from tests.federations import FAST, about, checkpoint, federate, lines

CLIENTS = ("0", "1", "2", "3")
DOMAINS = 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, _tiny: None) -> Path:
    keys: dict[str, Any] = {"name": "whole", "seed": 3, "centralized": True}
    return federate(tmp_path_factory.mktemp("runs"), report=True, **keys)


def test_the_run_is_described(finished: Path) -> None:
    config = about(finished)
    assert config["status"] == "finished"
    assert config["seed"] == 3
    assert set(config["models"]) == set(config["names"]) == {"server", *CLIENTS}
    assert len(set(config["models"].values())) == 5
    assert set(config["own_domain"].values()) == set(config["domains"])
    assert len(config["domains"]) == DOMAINS
    assert config["floor"]["loss"].keys() == set(config["domains"])


def test_every_stage_of_every_model_is_measured(finished: Path) -> None:
    found = [
        (line["stage"], line["round"], line["model"], line["domain"])
        for line in lines(finished, "metrics")
    ]
    models = ("server", *CLIENTS)
    stages = [("zero-shot", 0, m) for m in models]
    stages += [("federated", r, m) for r in (1, 2) for m in models]
    stages += [("standalone", 2, m) for m in CLIENTS] + [("public-only", 2, m) for m in CLIENTS]
    stages += [("public-only", 2, "server")]
    stages += [("centralized", 2, "server")]
    domains = about(finished)["domains"]
    assert sorted(found) == sorted((*s, d) for s, d in product(stages, domains))
    assert all(math.isfinite(line["loss"]) for line in lines(finished, "metrics"))
    assert all(0 <= line["accuracy"] <= 1 for line in lines(finished, "metrics"))


def test_what_is_compared_has_equal_means(finished: Path) -> None:
    totals: dict[tuple[str, str], Effort] = {}
    for line in lines(finished, "training"):
        values = (line["steps"], line["private_samples"], line["public_samples"], line["queries"])
        key = line["stage"], line["model"]
        totals[key] = totals.get(key, Effort()) + Effort(*values)
    federated = {model: totals["federated", model] for model in ("server", *CLIENTS)}
    # Two rounds of 4 steps of 4 samples a phase; 4 public samples of 4 domains, one teacher.
    assert federated["0"] == Effort(16, 64, 32, 32)
    assert federated["server"] == Effort(8, 0, 32, 2 * 16 * 4)
    for client in CLIENTS:
        assert totals["standalone", client] == Effort(16, 64)
        assert totals["public-only", client] == replace(federated[client], queries=0)
    assert totals["public-only", "server"] == replace(federated["server"], queries=0)
    assert totals["centralized", "server"].steps == sum(x.steps for x in federated.values())


def test_every_message_is_written_down(finished: Path) -> None:
    message_log = lines(finished, "messages")
    messages = [line for line in message_log if line["client"] != "server"]
    phases = [(0, "query.register"), (0, "evaluate"), (2, "train.baseline")]
    phases += [(r, p) for r in (1, 2) for p in ("train.local", "train.distill", "evaluate")]
    found = [(line["round"], line["phase"], line["client"]) for line in messages]
    assert sorted(found) == sorted((*p, c) for p, c in product(phases, CLIENTS))
    assert all(line["received_bytes"] > 0 for line in messages)
    assert all(line["sent_bytes"] > 0 for line in messages)
    # The server's tokenizer is told once, at registration.
    told = {line["phase"]: line["sent_bytes"] for line in messages}
    assert told["query.register"] > 2 * told["train.distill"]
    assert all(line["error"] is None for line in message_log)
    assert {line["round"] for line in message_log if line["client"] == "server"} == {1, 2}


def test_shares_of_teachers_sum_to_one(finished: Path) -> None:
    sums: dict[tuple[object, ...], float] = {}
    for line in lines(finished, "teacher_shares"):
        key = (line["round"], line["direction"], line["model"], line["domain"])
        sums[key] = sums.get(key, 0.0) + line["share"]
    domains = about(finished)["domains"]
    up = product((1, 2), ["up"], ["server"], domains)
    down = product((1, 2), ["down"], CLIENTS, domains)
    assert sums == {key: pytest.approx(1, abs=1e-6) for key in (*up, *down)}


def test_the_report_is_there_and_the_folder_reads_back(finished: Path) -> None:
    assert "</html>" in (finished / "report.html").read_text()
    run = read_run(finished)
    assert run.rounds == 2
    assert run.clients == list(CLIENTS)
    assert not list(finished.rglob(".*"))  # nothing half-written


@pytest.mark.parametrize("model", ["server", *CLIENTS])
def test_adapters_reproduce_the_reported_metric(finished: Path, model: str) -> None:
    base = str(build(about(finished)["models"][model]))
    folder = finished / ("server" if model == "server" else f"clients/{model}") / "adapter"
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder))
    config = parse({**FAST, "seed": 3})
    splits = load_splits(config.data, config.seed, 1)
    tokenizer = load_tokenizer(str(base))
    length = config.data.max_length
    lm = CausalLM(adapted.eval(), tokenizer, base, tokenizer.vocab_size, length)
    scores, _ = Evaluator(tokenizer, splits.test, splits.questions, length).evaluate(
        partial(sample_nll, lm)
    )
    reported = {
        line["domain"]: line
        for line in lines(finished, "metrics")
        if (line["stage"], line["round"], line["model"]) == ("federated", 2, model)
    }
    for domain, score in scores.items():
        assert score.loss == pytest.approx(reported[domain]["loss"], abs=1e-4)
        assert score.accuracy == pytest.approx(reported[domain]["accuracy"], abs=1e-4)


def test_the_federation_changes_every_model(finished: Path) -> None:
    measured = {
        (line["stage"], line["round"], line["model"], line["domain"]): line["loss"]
        for line in lines(finished, "metrics")
    }
    for model in ("server", *CLIENTS):
        for domain in about(finished)["domains"]:
            zero = measured["zero-shot", 0, model, domain]
            first, second = (measured["federated", r, model, domain] for r in (1, 2))
            assert len({zero, first, second}) == 3


def test_one_seed_gives_one_result_and_another_another(finished: Path, tmp_path: Path) -> None:
    again = federate(tmp_path, name="again", seed=3, centralized=True)
    other = federate(tmp_path, name="other", seed=4, baselines=False)
    assert (again / "metrics.jsonl").read_text() == (finished / "metrics.jsonl").read_text()
    assert (again / "teacher_shares.jsonl").read_text() == (
        finished / "teacher_shares.jsonl"
    ).read_text()
    measured = [
        [line["loss"] for line in lines(run, "metrics") if line["stage"] == "zero-shot"]
        for run in (finished, other)
    ]
    assert measured[0] != measured[1]


def test_a_taken_name_gets_a_number(finished: Path) -> None:
    before = (finished / "metrics.jsonl").read_text()
    federate(finished.parent, name="whole", clients=2, rounds=1, baselines=False)
    assert about(finished.parent / "whole-2")["status"] == "finished"
    assert (finished / "metrics.jsonl").read_text() == before


def test_training_goes_on_where_the_last_round_stopped(finished: Path) -> None:
    """Two rounds of four steps of four samples; whole phases."""
    state = strip_prefix(checkpoint(finished), "training|distill|")
    assert int(state["samples_seen"]) == 32
    assert int(state["step"]) == 0
    steps = {float(value) for name, value in state.items() if name.startswith("step/")}
    assert steps == {8.0}


def test_the_server_learns_labels_before_it_hears_anybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_builtin: object
) -> None:
    began: list[dict[str, np.ndarray]] = []
    original = fedmkt.server_step

    def watched(model: Any, *rest: Any, **options: Any) -> Any:
        began.append(model.adapter)
        return original(model, *rest, **options)

    monkeypatch.setattr(fedmkt, "server_step", watched)
    keys = {"clients": 2, "data__holdout": 4, "data__domains": 2}
    folder = federate(tmp_path, labels_first=True, **keys)
    federate(tmp_path / "not", baselines=False, **keys)
    first, second, untrained, _ = began
    assert all(not array.any() for name, array in untrained.items() if "lora_B" in name)
    assert any(array.any() for name, array in first.items() if "lora_B" in name)
    found = lines(folder, "training")
    efforts = {(x["stage"], x["phase"]): x for x in found if x["model"] == "server"}
    [labels] = [x for x in found if x["phase"] == "labels"]
    assert (labels["round"], labels["model"], labels["queries"]) == (1, "server", 0)
    assert 0 < labels["steps"] <= 2  # half of a phase
    # While clients train: it is no part of what the server does with their replies.
    timed = {x["phase"]: x for x in lines(folder, "messages") if x["client"] == "server"}
    assert (timed["server.labels"]["round"], timed["server.labels"]["error"]) == (1, None)
    spent = [x["seconds"] for x in lines(folder, "messages") if x["phase"] == "train.local"]
    assert timed["server.labels"]["seconds"] <= max(spent)
    assert 0 < efforts["public-only", "all"]["steps"] <= 3 * 4
    assert second.keys() == first.keys()
    zero = [
        x for x in lines(folder, "metrics") if (x["stage"], x["model"]) == ("zero-shot", "server")
    ]
    other = [x for x in lines(tmp_path / "not" / "quickstart", "metrics") if x["round"] == 0]
    assert [x["loss"] for x in zero] == [x["loss"] for x in other if x["model"] == "server"]

"""Strategies that learn whom to trust, and the acceptance test, in whole federations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients.knowledge import KnowledgeClient
from fedfuse.algorithms import local_model as local_model
from fedfuse.config.gate import GateConfig
from fedfuse.errors import FedfuseError
from fedfuse.evaluation.acceptance import AcceptanceResult, Change
from fedfuse.fusion.gating import learned_gate as learning
from fedfuse.fusion.gating.learned_gate import LearnedGate
from fedfuse.tracking.checkpoints import strip_prefix
from fedfuse.tracking.run import read_run
from tests.federations import about, checkpoint, federate, lines

SHORT: dict[str, Any] = {
    "clients": 2,
    "baselines": False,
    "data__domains": 2,
    "data__public": 12,
    "data__questions": 1,
    "gate__steps": 5,
}
BOTH = {"strategy": "fedfuse", "fusion__server_rule": "learned-gate"}


@pytest.fixture(scope="module")
def fedfuse(tmp_path_factory: pytest.TempPathFactory, tiny_builtin: object) -> Path:
    return federate(tmp_path_factory.mktemp("fedfuse"), **SHORT, **BOTH)


def test_both_sides_learn_whom_to_trust(fedfuse: Path) -> None:
    noted = lines(fedfuse, "gates")
    assert [(x["round"], x["model"]) for x in noted] == [
        (number, model) for number in (1, 2) for model in ("server", "0", "1")
    ]
    # It goes on where it stopped: round 2 does not begin with an untrained gate again.
    for model in ("server", "0", "1"):
        first, second = (x for x in noted if x["model"] == model)
        assert first["before"] != second["before"]
    assert {x["direction"] for x in lines(fedfuse, "teacher_shares")} == {"up", "down"}


def test_the_gate_is_in_the_checkpoint_bit_for_bit(fedfuse: Path) -> None:
    state = strip_prefix(checkpoint(fedfuse), "strategy|rule/")
    assert int(state["round"]) == 2
    restored = LearnedGate(GateConfig(steps=5), seed=0)
    restored.load(state)
    for name, value in restored.state().items():
        np.testing.assert_array_equal(value, state[name])
        assert value.dtype == state[name].dtype
    fresh = LearnedGate(GateConfig(steps=5), seed=0)
    assert fresh.state().keys() != state.keys()  # what is there has been trained


def test_one_seed_gives_one_selection(fedfuse: Path, tmp_path: Path) -> None:
    again = federate(tmp_path, **SHORT, **BOTH)
    assert lines(again, "gates") == lines(fedfuse, "gates")
    assert lines(again, "teacher_shares") == lines(fedfuse, "teacher_shares")


def test_a_client_keeps_what_it_told_of_its_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gate sees what its model of now would say, and no context is looked at again."""
    told: list[np.ndarray] = []
    original = KnowledgeClient._context_losses

    def kept(client: KnowledgeClient, public: Any) -> np.ndarray:
        with monkeypatch.context() as patch:
            patch.setattr(local_model, "context_losses", lambda *_: pytest.fail("looked at again"))
            found = original(client, public)
        np.testing.assert_allclose(found, client.local_model.context_losses(public), rtol=1e-4)
        told.append(found)
        return found

    monkeypatch.setattr(KnowledgeClient, "_context_losses", kept)
    federate(tmp_path, **SHORT, **BOTH)
    assert len(told) == 2 * 2
    assert not np.allclose(told[0], told[2], rtol=1e-4)  # a round later


def test_fedfuse_learns_on_the_clients_alone(tmp_path: Path) -> None:
    folder = federate(tmp_path, **{**SHORT, "rounds": 1}, strategy="fedfuse")
    assert {x["model"] for x in lines(folder, "gates")} == {"0", "1"}
    shares = [x["share"] for x in lines(folder, "teacher_shares") if x["direction"] == "up"]
    # The server takes one teacher a sample: each of twelve samples wholly or not.
    assert all(12 * share == pytest.approx(round(12 * share), abs=1e-4) for share in shares)


def test_fusion_x_learns_on_the_server_alone(tmp_path: Path) -> None:
    folder = federate(tmp_path, **{**SHORT, "rounds": 1}, strategy="fusion-x")
    assert [x["model"] for x in lines(folder, "gates")] == ["server"]
    shares = [x["share"] for x in lines(folder, "teacher_shares") if x["direction"] == "down"]
    # DualMinCE: each of twelve samples wholly or not.
    assert all(12 * share == pytest.approx(round(12 * share), abs=1e-4) for share in shares)


def test_clients_that_tell_no_context_losses_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.knowledge.pack_context_loss", lambda content, loss: None)
    with pytest.raises(FedfuseError, match=r"round 1: expected usable knowledge .* got 0"):
        federate(tmp_path, **SHORT, strategy="fusion-x")
    errors = [x["error"] for x in lines(tmp_path / "quickstart", "messages") if x["error"]]
    assert errors
    assert all("expected contexts with a loss" in error for error in errors)


def test_a_public_set_that_changes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedfuseError, match=r"knowledge.public-share = 0.5: expected 1 with"):
        federate(tmp_path, **SHORT, strategy="fusion-x", knowledge__public_share=0.5)
    assert about(tmp_path / "quickstart")["status"] == "failed"


def test_the_papers_gate_can_be_chosen(tmp_path: Path) -> None:
    keys = {"gate__network": "perceptron", "gate__loss": "distillation"}
    folder = federate(tmp_path, **{**SHORT, "rounds": 1}, **keys, strategy="fusion-x")
    assert "strategy|rule/gate/layers.0.weight" in checkpoint(folder)


@pytest.mark.parametrize("keep", [True, False])
def test_a_round_that_is_not_accepted_leaves_no_trace(
    keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[int] = []

    def acceptance_test(
        before: np.ndarray, after: np.ndarray, domains: Any, *, seed: int
    ) -> AcceptanceResult:
        assert len(before) == len(after) == len(domains)
        judged.append(len(domains))
        assert (before != after).any()
        return AcceptanceResult(keep, {"": Change(0.5, 0.25, not keep)})

    monkeypatch.setattr(local_model, "acceptance_test", acceptance_test)
    folder = federate(
        tmp_path,
        **SHORT,
        strategy="fedmkt",
        acceptance_test=True,
        data__holdout=8,
    )
    # The server by its held-out samples of two domains, a client by a tenth of its private ones.
    assert judged == [16, 2, 2] * 2
    verdicts = lines(folder, "acceptance")
    assert [(x["round"], x["model"], x["keep"]) for x in verdicts] == [
        (number, model, keep) for number in (1, 2) for model in ("server", "0", "1")
    ]
    assert all(x["changes"] == {"": 0.5} for x in verdicts)
    losses: dict[str, set[float]] = {}
    for line in lines(folder, "metrics"):
        if line["model"] == "server":
            losses.setdefault(line["domain"], set()).add(line["loss"])
    assert all((len(found) > 1) == keep for found in losses.values())
    assert any(name.startswith("training|distill|") for name in checkpoint(folder)) == keep


def test_scores_tell_a_change_from_noise(fedfuse: Path) -> None:
    for line in lines(fedfuse, "metrics"):
        assert (line.get("noise") is None) == (line["stage"] == "zero-shot")
    read = read_run(fedfuse).metrics
    assert all(m.noise is not None and m.noise > 0 for m in read if m.stage == "federated")


def test_gates_are_trained_in_the_federation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no step the signal stays what it was; the tests above would not tell."""
    trained = []
    original = learning.train_gates

    def watch(gates: Any, *rest: Any) -> None:
        before = [value.detach().clone() for value in gates.parameters()]
        original(gates, *rest)
        # Every one of the ten folds has moved.
        pairs = zip(before, gates.parameters(), strict=True)
        moved = torch.stack([(old != new).flatten(1).any(1) for old, new in pairs])
        trained.append(bool(moved.any(0).all()) and moved.shape[1] == 10)

    monkeypatch.setattr(learning, "train_gates", watch)
    federate(tmp_path, **{**SHORT, **BOTH, "rounds": 1})
    assert trained == [True] * 3  # on the server and on both clients


def test_an_acceptance_test_without_validation_is_refused(tmp_path: Path) -> None:
    keys = {"acceptance_test": True, "data__holdout": 8, "data__private": 9}
    with pytest.raises(FedfuseError, match=r"query.register: expected replies of at least 2"):
        federate(tmp_path, **SHORT, strategy="fedmkt", **keys)
    errors = [x["error"] for x in lines(tmp_path / "quickstart", "messages") if x["error"]]
    assert len(errors) == 2
    assert all("none of them for validation" in error for error in errors)

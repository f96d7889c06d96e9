"""FedAvgLoRA averages as by hand, LLM2SLM leaves the server alone, own strategies are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from numpy import ndarray
from safetensors.numpy import load_file

from fedfuse.algorithms.fedavg import weighted_mean
from fedfuse.errors import FedfuseError
from fedfuse.flower.messages import record_to_arrays
from fedfuse.plugins import class_name
from strategies.fedmkt import FedMKT
from strategies.registry import STRATEGIES, find_strategy
from tests.federations import about, federate, lines
from tests.strategies.saboteur import sabotage

SHORT: dict[str, Any] = {"rounds": 1, "baselines": False, "clients": 2, "data__domains": 2}
OWN = """
import numpy as np
from strategies.fedmkt import FedMKT

class LastClientOnly(FedMKT):
    def weigh(self, stats):
        weights = np.zeros_like(stats.loss)
        weights[:, -1] = 1
        return weights

class NotOne:
    pass
"""


def saved_adapter(folder: Path, model: str) -> dict[str, ndarray]:
    return load_file(folder / model / "adapter" / "adapter_model.safetensors")


def test_the_mean_is_weighted() -> None:
    one, two = {"a": np.float32([0, 4])}, {"a": np.float32([4, 0])}
    averaged = weighted_mean([one, two], [3, 1])["a"]
    np.testing.assert_allclose(averaged, [1, 3])
    assert averaged.dtype == np.float32


def test_fedavg_averages_the_clients_adapters(tmp_path: Path) -> None:
    sent: dict[int, tuple[float, dict[str, ndarray]]] = {}

    def listen(number: int) -> Any:
        def deed(kind: str, reply: Message) -> None:
            if kind == "train.local":
                count = float(reply.content.metric_records["metrics"]["num-examples"])  # type: ignore[arg-type]
                sent[number] = (count, record_to_arrays(reply.content.array_records["adapter"]))

        return deed

    folder = federate(
        tmp_path,
        app=sabotage({i: listen(i) for i in range(3)}),
        **{**SHORT, "clients": 3},
        strategy="fedavg-lora",
        clients__model="builtin:server",
    )
    assert len({count for count, _ in sent.values()}) > 1  # two of three share a domain
    total = sum(count for count, _ in sent.values())
    server = saved_adapter(folder, "server")
    assert server
    for name, values in server.items():
        wanted = sum(count / total * adapter[name] for count, adapter in sent.values())
        np.testing.assert_allclose(values, wanted, atol=1e-6)
        assert not np.allclose(values, sent[0][1][name])
    # Every client ends with the global adapter, and so with the server's scores.
    final = [x for x in lines(folder, "metrics") if x["stage"] == "federated"]
    for domain in about(folder)["domains"]:
        assert len({round(x["loss"], 5) for x in final if x["domain"] == domain}) == 1


def test_fedavg_refuses_other_bases(tmp_path: Path) -> None:
    with pytest.raises(
        FedfuseError, match=r"train.local: expected replies of at least 2 clients .* got 0"
    ):
        federate(tmp_path, **SHORT, strategy="fedavg-lora", clients__model="builtin:gpt2")
    errors = [x["error"] for x in lines(tmp_path / "quickstart", "messages") if x["error"]]
    assert len(errors) == 2
    assert all("expected the adapter's 8 arrays, got 14" in error for error in errors)


def test_llm2slm_teaches_the_clients_and_not_the_server(tmp_path: Path) -> None:
    folder = federate(tmp_path, **{**SHORT, "rounds": 2}, strategy="llm2slm")
    server = saved_adapter(folder, "server")
    assert all(not values.any() for name, values in server.items() if "lora_B" in name)
    measured = lines(folder, "metrics")
    for domain in about(folder)["domains"]:
        line = [x for x in measured if (x["model"], x["domain"]) == ("server", domain)]
        assert len({(x["loss"], x["accuracy"]) for x in line}) == 1
    message_log = lines(folder, "messages")
    assert [x["client"] for x in message_log if x["phase"] == "train.distill"] == ["0", "1"] * 2
    assert {x["direction"] for x in lines(folder, "teacher_shares")} == {"down"}
    up = [x["received_bytes"] for x in message_log if x["phase"] == "train.local"]
    down = [x["sent_bytes"] for x in message_log if x["phase"] == "train.distill"]
    assert max(up) < 1000 < min(down)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_selection.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_selection"


def test_an_own_strategy_selects(plugin: str, tmp_path: Path) -> None:
    folder = federate(tmp_path, **SHORT, strategy=f"{plugin}:LastClientOnly")
    up = {
        (x["domain"], x["teacher"]): x["share"]
        for x in lines(folder, "teacher_shares")
        if x["direction"] == "up" and x["share"]
    }
    assert up == {(domain, "1"): 1.0 for domain in about(folder)["domains"]}


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("fedmtk", "strategy = 'fedmtk'"),
        ("own_selection:Missing", "has no attribute 'Missing'"),
        ("no_such_module:Class", "No module named 'no_such_module'"),
        ("own_selection:NotOne", "NotOne"),
    ],
)
def test_unknown_strategies_are_refused(plugin: str, name: str, problem: str) -> None:
    with pytest.raises(FedfuseError) as refused:
        find_strategy(name)
    assert problem in str(refused.value)
    names = "fedfuse, fusion-x, fedmkt, fedavg-lora, llm2slm, feddtpt"
    assert f"expected {names}, or module:Class" in str(refused.value)


def test_builtin_strategies_are_found() -> None:
    assert find_strategy("fedmkt") is FedMKT
    assert all(class_name(find_strategy(name)) == cls for name, cls in STRATEGIES.items())

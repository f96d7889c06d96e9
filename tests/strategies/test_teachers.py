"""Federations whose server, or a client, is a model that is not in the process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedfuse.config.run_config import parse
from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError
from fedfuse.factory.data import load_splits
from fedfuse.factory.extraction import extract_teacher
from fedfuse.factory.models import check_inputs, load_model
from fedfuse.knowledge.archive import KnowledgeArchive
from fedfuse.simulation.simulate import absolute_paths
from fedfuse.tokenizers.dataset import TokenizedDataset
from strategies.fedavg_lora import FedAvgLoRA
from strategies.fedmkt import FedMKT
from tests.federations import FAST, about, federate, lines
from tests.logprob_server import LogprobServer, serve

TINY: dict[str, Any] = {"data__domains": 2, "data__questions": 2}


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def served(tiny_builtin: dict[str, Path]) -> Iterator[LogprobServer]:
    """The built-in server's model behind a URL."""
    lm = load_model("builtin:server", device="cpu")
    with serve(lm.model, lm.tokenizer) as running:
        yield running


def scores(folder: Path, model: str) -> dict[tuple[int, str], float]:
    return {
        (at["round"], at["domain"]): at["loss"]
        for at in lines(folder, "metrics")
        if at["model"] == model and at["stage"] in ("zero-shot", "federated")
    }


def test_a_server_behind_a_url_teaches_as_the_same_model_here_does(
    served: LogprobServer, tmp_path: Path
) -> None:
    keys = {"strategy": "llm2slm", "clients__model": "builtin:gpt2, builtin:llama", **TINY}
    here = federate(tmp_path / "here", clients=2, **keys)
    folder = federate(
        tmp_path / "there",
        clients=2,
        **keys,
        server__model=served.name(),
        server__tokenizer="builtin:server",
    )
    for model in ("server", "0", "1"):
        found, right = scores(folder, model), scores(here, model)
        assert found.keys() == right.keys()
        assert list(found.values()) == pytest.approx(list(right.values()), rel=0.01)
        # The server is what it was, the clients are not.
        assert (found[0, "bank"] == found[2, "bank"]) == (model == "server")
    assert {at["stage"] for at in lines(folder, "metrics") if at["model"] == "server"} == {
        "zero-shot",
        "federated",
    }
    phases = {(at["model"], at["phase"]) for at in lines(folder, "training")}
    assert ("0", "distill") in phases
    assert not any(model == "server" for model, _ in phases)


@pytest.mark.parametrize("strategy", ["fedmkt", "fusion-x", "fedfuse"])
def test_a_server_behind_a_url_hears_nobody_and_sends_nothing_private(
    served: LogprobServer, tmp_path: Path, strategy: str
) -> None:
    keys = {"server__model": served.name(), "server__tokenizer": "builtin:server", **TINY}
    keys |= {"data__holdout": 1, "data__blind": 4, "fusion__evidence": "blind"}
    keys |= {"labels_first": True, "clients__model": "builtin:gpt2, builtin:llama"}
    folder = federate(tmp_path, clients=2, report=True, strategy=strategy, **keys)
    assert (folder / "report.html").is_file()
    splits = load_splits(parse(federated_keys(keys)).data, 0, 1)
    asked = {tuple(request["prompt"]) for request in served.requests}
    tokenizer = served.tokenizer

    def inputs(samples: Sequence[Sample]) -> set[tuple[int, ...]]:
        data = TokenizedDataset(tokenizer, samples, 64)
        return {tuple(data.input_ids(i).tolist()) for i in range(len(data))}

    options = [q.answered(option) for q in splits.questions for option in q.options]
    assert asked == inputs([*splits.public, *splits.test, *options])
    assert not asked & inputs([*splits.private[0], *splits.holdout, *splits.blind])
    assert len(served.requests) <= len(asked) + 1  # nothing twice, in whatever round


def federated_keys(keys: dict[str, Any]) -> dict[str, Any]:
    return {**FAST, **{key.replace("__", ".").replace("_", "-"): v for key, v in keys.items()}}


@pytest.mark.parametrize("evidence", ["open", "blind"])
def test_a_client_behind_a_url_teaches_and_does_not_learn(
    served: LogprobServer, tmp_path: Path, evidence: str
) -> None:
    keys = {
        "clients__model": f"{served.name('org/tiny')}, builtin:llama",
        "clients__tokenizer": "builtin:server",
        "server__model": "builtin:gpt2",
        "data__blind": 4,
        "fusion__evidence": evidence,
    }
    folder = federate(tmp_path, clients=2, **keys, **TINY)
    found = scores(folder, "0")
    assert found[0, "bank"] == found[2, "bank"]
    assert scores(folder, "1")[0, "bank"] != scores(folder, "1")[2, "bank"]
    teachers = {at["teacher"] for at in lines(folder, "teacher_shares") if at["model"] == "server"}
    assert {"0", "1"} <= teachers
    messages = {(at["phase"], at["client"]) for at in lines(folder, "messages")}
    assert ("train.local", "0") in messages
    assert ("train.distill", "1") in messages
    assert not {("train.distill", "0"), ("train.baseline", "0")} & messages
    assert not any(at["error"] for at in lines(folder, "messages"))
    # The server needs not know where the client's model is.
    assert about(folder)["models"]["0"] == "org/tiny"


def extracted(file: Path, keys: dict[str, Any], **more: Any) -> Path:
    config = parse(federated_keys(keys | more))
    extract_teacher(config, file, lambda done, total: None)
    return file


@pytest.mark.parametrize("evidence", ["open", "blind"])
def test_files_teach_as_their_models_do(
    tiny_builtin: dict[str, Path], tmp_path: Path, evidence: str
) -> None:
    """A client that never learns is the same from its file; so is what the server makes of it."""
    keys = {**TINY, "data__blind": 4, "fusion__evidence": evidence}
    file = extracted(tmp_path / "file", keys, server__model="builtin:server")
    folder = federate(
        tmp_path, clients=2, **keys, clients__model=f"knowledge:{file}, builtin:llama"
    )
    lm = load_model("builtin:server", device="cpu")
    with serve(lm.model, lm.tokenizer) as served:
        models = f"{served.name()}, builtin:llama"
        other = federate(
            tmp_path / "url", clients=2, **keys, clients__model=models,
            clients__tokenizer="builtin:server",
        )  # fmt: skip
    for model in ("server", "0", "1"):
        found, right = scores(folder, model), scores(other, model)
        assert list(found.values()) == pytest.approx(list(right.values()), rel=0.01)


def test_a_server_from_a_file(tiny_builtin: dict[str, Path], tmp_path: Path) -> None:
    file = extracted(tmp_path / "file", TINY, server__model="builtin:server")
    size = file.stat().st_size
    keys = {**TINY, "server__model": f"knowledge:{file}", "strategy": "fedfuse"}
    folder = federate(tmp_path, clients=2, **keys)
    assert scores(folder, "1")[0, "bank"] != scores(folder, "1")[2, "bank"]
    assert file.stat().st_size == size


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"seed": 1}, r"expected knowledge of all \d+ samples .*, got none of \d+, such as"),
        ({"data__max_length": 4}, "fedfuse extract with the run's own config"),
    ],
)
def test_a_file_of_other_data_is_refused(
    tiny_builtin: dict[str, Path], tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    file = extracted(tmp_path / "file", TINY, server__model="builtin:server")
    with pytest.raises(FedfuseError, match=message):
        federate(tmp_path, clients=2, server__model=f"knowledge:{file}", **{**TINY, **keys})


def test_a_client_whose_file_lacks_the_blind_questions_is_refused_by_name(
    tiny_builtin: dict[str, Path], tmp_path: Path
) -> None:
    file = extracted(tmp_path / "file", TINY, server__model="builtin:server", data__blind=4)
    keys = {**TINY, "data__blind": 4, "fusion__evidence": "blind", "min_clients": 1}
    models = f"knowledge:{file}, builtin:llama"
    folder = federate(tmp_path, clients=2, clients__model=models, **keys)
    errors = {at["error"] for at in lines(folder, "messages") if at["client"] != "1"} - {None}
    assert errors
    assert all("fusion.evidence = 'open' where blind questions are" in error for error in errors)
    config = parse(federated_keys(keys | {"clients__model": models}))
    with pytest.raises(FedfuseError, match="blind questions are missing"):
        check_inputs(config, 2)
    extracted(file, keys, server__model="builtin:server")  # adds what is missing
    check_inputs(config, 2)


def test_a_stopped_extraction_goes_on(
    tiny_builtin: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = extracted(tmp_path / "whole", TINY, server__model="builtin:server")
    monkeypatch.setattr("fedfuse.algorithms.teacher._AT_ONCE", 3)

    def stop(done: int, total: int) -> None:
        if done >= 6:
            raise KeyboardInterrupt

    config = parse(federated_keys({**TINY, "server__model": "builtin:server"}))
    with pytest.raises(KeyboardInterrupt):
        extract_teacher(config, tmp_path / "file", stop)
    before = KnowledgeArchive.read(tmp_path / "file")
    assert 0 < len(before) < len(KnowledgeArchive.read(whole))
    extracted(tmp_path / "file", TINY, server__model="builtin:server")
    assert len(before) == len(KnowledgeArchive.read(whole))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"server__model": "http://x/v1"}, "expected http"),
        ({"server__model": "http://me:secret@x/v1#m"}, "without user, password"),
        ({"server__model": "knowledge:nowhere"}, "a file that fedfuse extract wrote, got none"),
        (
            {"server__model": "http://x/v1#m", "centralized": True},
            "centralized: expected False with a server.model that does not learn",
        ),
        (
            {"server__model": "http://x/v1#m", "clients__model": "http://x/v1#n"},
            "models: expected one that can learn, got teachers alone",
        ),
        (
            {"server__model": "http://x/v1#m", "server__endpoint_key_variable": "NO_SUCH_KEY"},
            "environment variable 'NO_SUCH_KEY'",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_asked(
    tiny_builtin: dict[str, Path], keys: dict[str, Any], message: str
) -> None:
    tokenizers = {"server__tokenizer": "builtin:server", "clients__tokenizer": "builtin:server"}
    with pytest.raises(FedfuseError, match=message) as caught:
        check_inputs(parse(federated_keys(tokenizers | keys)), 2)
    assert "secret" not in str(caught.value)


def test_adapters_of_teachers_cannot_be_averaged(tiny_builtin: dict[str, Path]) -> None:
    keys = {"clients__model": "builtin:gpt2, http://x/v1#m", "clients__tokenizer": "builtin:server"}
    config = parse(federated_keys(keys))
    with pytest.raises(FedfuseError, match="fedavg-lora: model 'http://x/v1#m'"):
        FedAvgLoRA.check_inputs(config, 2)


def test_paths_are_absolute_and_urls_are_not_paths(tmp_path: Path) -> None:
    keys = {
        "server__model": "knowledge:file",
        "clients__model": "0=https://x/v1#org/m, *=builtin:gpt2",
        "clients__tokenizer": f"*={tmp_path}",
    }
    config = absolute_paths(parse(federated_keys(keys)))
    assert config.server.model == f"knowledge:{Path('file').resolve()}"
    assert config.clients.model == "0=https://x/v1#org/m,*=builtin:gpt2"
    assert config.clients.tokenizer == f"*={tmp_path}"


@pytest.mark.parametrize("piggyback", [False, True])
def test_a_run_with_teachers_goes_on_to_the_same_end(
    tiny_builtin: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piggyback: bool
) -> None:
    file = extracted(tmp_path / "file", TINY, server__model="builtin:server")
    keys = {**TINY, "baselines": False, "piggyback": piggyback, "rounds": 3}
    keys["clients__model"] = f"knowledge:{file}, builtin:llama"
    whole = federate(tmp_path / "whole", clients=2, **keys)
    evaluate = FedMKT.evaluate_server

    def stop(self: FedMKT, server_round: int) -> Any:
        if server_round == 2:
            raise RuntimeError("killed")
        return evaluate(self, server_round)

    with monkeypatch.context() as patch:
        patch.setattr(FedMKT, "evaluate_server", stop)
        with pytest.raises(RuntimeError, match="killed"):
            federate(tmp_path, clients=2, **keys)
    folder = tmp_path / "quickstart"
    federate(tmp_path, clients=2, resume=str(folder), **keys)
    for model in ("server", "0", "1"):
        assert scores(folder, model) == scores(whole, model)

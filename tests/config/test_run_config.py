"""The run config: read and written without loss, and refused with every reason at once."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfuse.config.data import DataConfig
from fedfuse.config.model import AdapterConfig, ModelConfig
from fedfuse.config.preset import preset
from fedfuse.config.run_config import RunConfig, flatten, model_of_partition, parse
from fedfuse.config.training import (
    ClientDistillConfig,
    Objective,
    ServerDistillConfig,
    TrainingConfig,
)
from fedfuse.errors import FedfuseError
from fedfuse.flower.app_bundle import app_dir, default_run_config


def test_defaults_are_those_of_pyproject() -> None:
    """But for keys of presets, which are "auto" there; types included."""
    shipped, own = default_run_config(app_dir()), flatten(RunConfig())
    own |= dict.fromkeys(["preset", *preset("quickstart")], "auto")
    assert shipped == own
    assert {k: type(v) for k, v in shipped.items()} == {k: type(v) for k, v in own.items()}
    assert parse(shipped) == RunConfig() == parse({})


def test_flatten_by_hand() -> None:
    config = RunConfig(min_clients=5, data=DataConfig(max_length=99))
    flat = flatten(config)
    assert flat["min-clients"] == 5
    assert flat["data.max-length"] == 99
    assert flat["server-distill.label-weight"] == 0.05
    assert all(isinstance(value, bool | int | float | str) for value in flat.values())


# A value that differs from the default, for every key.
CHANGED: dict[str, Any] = {
    key: {
        bool: lambda v: not v,
        int: lambda v: v + 1,
        float: lambda v: v / 2 + 0.01,
        str: lambda v: v + "x",
    }[type(value)](value)
    for key, value in flatten(RunConfig()).items()
} | {
    "data.domains": 2,
    "data.partition": "iid",
    "server.dtype": "bfloat16",
    "clients.dtype": "float16",
    "server.autocast": "float16",
    "clients.autocast": "bfloat16",
    "server.quantization": "4bit",
    "clients.quantization": "8bit",
    "server.device-map": "auto",
    "clients.device-map": "auto",
    "knowledge.logprob-bits": 8,
    "server-distill.divergence": "forward-kl",
    "client-distill.divergence": "reverse-kl",
    "knowledge.alignment": "dtw",
    "knowledge.duplicate-tokens": "first",
    "knowledge.unaligned-positions": "one-hot",
    "data.blind": 9,
    "fusion.evidence": "blind",
    "gate.network": "perceptron",
    "gate.loss": "distillation",
    "gate.features": "entropy,neighbour-accuracy",
    "feddtpt.search.proposer": "random",
    "feddtpt.aggregation.method": "best-client",
    "feddtpt.candidates": "none",
    "black-box.url": "https://models.example/v1",
    "log-format": "json",
    "piggyback": True,
    "metrics-port": 9095,
}
del CHANGED["preset"]  # It changes others: test_presets.py


@settings(max_examples=40, deadline=None)
@given(st.sets(st.sampled_from(sorted(CHANGED))))
def test_parse_is_the_inverse_of_flatten(keys: set[str]) -> None:
    # Options that exclude each other, and rules that need another alignment.
    keys = keys - {"knowledge.delta-threshold"} if "knowledge.public-share" in keys else keys
    if keys & {"knowledge.duplicate-tokens", "knowledge.unaligned-positions"}:
        keys = keys | {"knowledge.alignment"}
    if "fusion.evidence" in keys:
        keys = keys | {"data.blind"}
    given_values = {"preset": "quickstart"} | {key: CHANGED[key] for key in keys}
    config = parse(given_values)
    flat = flatten(config)
    assert flat == flatten(RunConfig()) | given_values
    assert parse(flat) == config


@pytest.mark.parametrize(
    ("given_values", "why"),
    [
        (
            {"knowledge.delta-threshold": 0.1, "knowledge.public-share": 0.5},
            r"delta-threshold: expected 0 with a knowledge\.public.*got 0\.1",
        ),
        (
            {"knowledge.unaligned-positions": "one-hot"},
            r"positions: expected 'skip' with knowledge\.alignment 'events', got 'one-hot'",
        ),
        (
            {"acceptance-test": True, "data.holdout": 0},
            r"acceptance-test: expected False with",
        ),
        (
            {"fusion.evidence": "blind", "data.blind": 0},
            r"fusion\.evidence: expected 'open' with a data\.blind of 0, got 'blind'",
        ),
        (
            {"feddtpt.search.queries": 31},
            r"feddtpt\.search\.queries: expected at least 32 .feddtpt\.examples\.private .* got 31",
        ),
        (
            {"gate.features": "entropy, luck"},
            r"gate\.features: expected one or more of context-loss",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(given_values: dict[str, Any], why: str) -> None:
    with pytest.raises(FedfuseError, match=why):
        parse(given_values)


def test_every_error_is_reported_at_once() -> None:
    wrong = {
        "local.learning-rat": 0.1,
        "rounds": True,
        "seed": 1.0,
        "data.source": "  ",
        "knowledge.alignment": "dwt",
        "server-distill.label-weight": 1.5,
        "baselines": 1,
        "timeout": "long",
        "zzz": 1,
    }
    with pytest.raises(FedfuseError) as caught:
        parse(wrong | {"data.domains": 3})
    head, *lines = str(caught.value).splitlines()
    assert head == "the run config is refused:"
    assert sorted(line.strip() for line in lines) == [
        "baselines: expected bool, got 1 of type int",
        "data.source: expected text that is not empty, got '  '",
        "knowledge.alignment: expected 'events', 'alm', 'events+alm', 'exact-boundary', 'dtw', "
        "got 'dwt'",
        "local.learning-rat = 0.1: no such key; did you mean 'local.learning-rate'?",
        "rounds: expected int, got True of type bool",
        "seed: expected int, got 1.0 of type float",
        "server-distill.label-weight: expected at least 0, at most 1, got 1.5",
        "timeout: expected float, got 'long' of type str",
        "zzz = 1: no such key",
    ]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("rounds", 0, "at least 1"),
        ("seed", -1, "at least 0"),
        ("timeout", 0.0, "above 0"),
        ("timeout", float("nan"), "above 0"),
        ("data.domains", 5, "at least 1, at most 4"),
        ("data.max-length", 1, "at least 2"),
        ("data.alpha", 0.0, "above 0"),
        ("local.batch-size", 0, "at least 1"),
        ("local.steps", -1, "at least 0"),
        ("local.learning-rate", 0.0, "above 0"),
        ("client-distill.label-weight", -0.1, "at least 0, at most 1"),
        ("knowledge.k", -1, "at least 0"),
        ("knowledge.top-p", 0.0, "above 0, at most 1"),
        ("knowledge.top-p", 1.01, "above 0, at most 1"),
        ("knowledge.logprob-bits", 32, "16, 8"),
        ("clients.lora-rank", 0, "at least 1"),
        ("clients.lora-alpha", -1.0, "above 0"),
        ("server.dtype", "int8", "'float32', 'bfloat16', 'float16'"),
        ("name", "", "text that is not empty"),
    ],
)
def test_out_of_range(key: str, value: object, expected: str) -> None:
    with pytest.raises(FedfuseError) as caught:
        parse({key: value})
    assert str(caught.value).endswith(f"{key}: expected {expected}, got {value!r}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rounds", 1),
        ("data.domains", 4),
        ("server-distill.label-weight", 1.0),
        ("server-distill.label-weight", 0.0),
        ("local.steps", 0),
        ("data.template", ""),
        ("strategy", "my_module:Mine"),
    ],
)
def test_the_ends_of_the_range_are_allowed(key: str, value: object) -> None:
    assert flatten(parse({key: value}))[key] == value


def test_a_whole_number_may_stand_for_a_float() -> None:
    config = parse({"timeout": 60, "server.lora-alpha": 8})
    assert config.timeout == 60.0
    assert type(config.timeout) is type(config.server.lora.alpha) is float
    with pytest.raises(FedfuseError, match="timeout: expected float, got True of type bool"):
        parse({"timeout": True})


def test_the_two_model_sections_are_apart() -> None:
    config = parse({"clients.lora-rank": 3})
    assert config.server == ModelConfig()
    assert config.clients == replace(RunConfig().clients, lora=AdapterConfig(rank=3))
    assert config.clients.model.count("builtin:") == 4


def test_every_key_is_documented() -> None:
    """The attributes in the docstrings of a class and its bases are its fields, each once."""
    todo: list[object] = [RunConfig()]
    while todo:
        config = todo.pop()
        docs = [inspect.cleandoc(kind.__doc__ or "") for kind in reversed(type(config).__mro__)]
        lines = [line for doc in docs for line in doc.partition("Attributes:")[2].splitlines()]
        described = [line.strip().partition(":")[0] for line in lines if line[4:5].isalpha()]
        sections = [f.name for f in fields(config) if is_dataclass(getattr(config, f.name))]  # type: ignore[arg-type]
        todo += [getattr(config, name) for name in sections]
        names = [f.name for f in fields(config) if f.name not in sections]  # type: ignore[arg-type]
        assert [name for name in described if name not in sections] == names


def test_phases_are_training_configs() -> None:
    config = parse({"local.steps": 7, "local.learning-rate": 0.2, "client-distill.temperature": 2})
    assert config.local == TrainingConfig(7, 32, 0.2)
    server = ServerDistillConfig(280, 32, 8e-3, objective=Objective(0.05), ewc=10.0)
    assert config.server_distill == server
    warm = Objective(0.03, "cross-entropy", 2.0)
    assert config.client_distill == ClientDistillConfig(240, 32, 1.2e-2, objective=warm)


def test_models_in_a_cycle() -> None:
    models = [model_of_partition(" a, b ,c,", i) for i in range(5)]
    assert models == ["a", "b", "c", "a", "b"]
    assert model_of_partition("only", 17) == "only"


def test_models_by_partition() -> None:
    models = [model_of_partition("0=a, 3 = hub/b:x, *=c", i) for i in range(5)]
    assert models == ["a", "c", "c", "hub/b:x", "c"]
    assert model_of_partition("1=a", 1) == "a"


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ("0=a, 1=b", r"expected a model for partition 2 or \*=MODEL"),
        ("a, 2=b", r"expected PARTITION=MODEL or \*=MODEL, got the entry 'a'"),
        ("2=", "got the entry '2='"),
        ("x=a", "got the entry 'x=a'"),
        ("-1=a", "got the entry '-1=a'"),
        (" , ", r"clients\.model: expected at least one model, got ' , '"),
    ],
)
def test_models_that_cannot_be_read(models: str, message: str) -> None:
    with pytest.raises(FedfuseError, match=message):
        model_of_partition(models, 2)


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("black-box.key-variable", "key-variable: expected the name of an environment variable"),
        ("black-box.key", "black-box.key: no such key"),
    ],
)
def test_a_key_in_the_wrong_place_is_not_repeated(key: str, why: str) -> None:
    with pytest.raises(FedfuseError, match=re.escape(why)) as caught:
        parse({key: "sk-proj-0123"})
    assert "sk-proj" not in str(caught.value)


def test_a_password_in_a_url_is_not_repeated() -> None:
    with pytest.raises(FedfuseError, match=r"black-box\.url: expected http") as caught:
        parse({"black-box.url": "https://me:secret@models.example/v1"})
    assert "secret" not in str(caught.value)

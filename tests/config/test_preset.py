"""Presets: complete, of the right types, chosen by the data, and overruled by what is given."""

from __future__ import annotations

import pytest

from fedfuse.config.preset import PRESETS, preset, with_preset
from fedfuse.config.run_config import RunConfig, flatten, parse
from fedfuse.errors import FedfuseError


@pytest.mark.parametrize("name", PRESETS)
def test_each_sets_the_same_keys_and_is_valid(name: str) -> None:
    keys, config = preset(name), parse({"preset": name})
    assert set(keys) == set(preset("quickstart"))
    assert flatten(config) == flatten(RunConfig()) | keys | {"preset": name}
    assert parse(flatten(config)) == config


def test_quickstart_is_the_default() -> None:
    assert parse({"preset": "quickstart"}) == RunConfig()
    assert preset("pretrained") != preset("quickstart")


def test_auto_goes_by_the_servers_model() -> None:
    assert parse({}).preset == parse({"preset": "auto"}).preset == "quickstart"
    assert parse({"server.model": "builtin:llama"}).preset == "quickstart"
    own = parse({"server.model": "./mine"})
    assert own.preset == "pretrained"
    assert own.local.learning_rate == preset("pretrained")["local.learning-rate"]


def test_a_name_wins_over_the_model() -> None:
    config = parse({"preset": "fedmkt", "server.model": "builtin:server"})
    assert (config.preset, config.strategy) == ("fedmkt", "fedmkt")
    assert config.server_distill.objective.label_weight == 0.9
    assert config.local.weight_decay == 0.1
    assert (config.knowledge.alignment, config.fusion.evidence) == ("dtw", "open")


def test_given_keys_win_and_auto_does_not() -> None:
    keys = {"preset": "fedmkt", "local.steps": 7, "local.batch-size": "auto", "strategy": "auto"}
    config = parse(keys)
    assert (config.local.steps, config.local.batch_size) == (7, 4)
    assert config.strategy == "fedmkt"


def test_auto_is_no_value_of_other_keys() -> None:
    assert parse({"server.device": "auto"}).server.device == "auto"  # a value of its own
    with pytest.raises(FedfuseError, match="rounds: expected int, got 'auto'"):
        parse({"rounds": "auto"})


def test_unknown_presets_are_refused() -> None:
    with pytest.raises(FedfuseError, match=r"preset: expected 'auto', 'quickstart'.*got 'fedmtk'"):
        parse({"preset": "fedmtk"})
    assert with_preset({"preset": "fedmtk"}) == {"preset": "fedmtk"}

"""Seeds are stable and distinct; models that cannot take part are refused early."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from fedfuse.config.data import DataConfig
from fedfuse.config.model import ModelConfig
from fedfuse.config.run_config import RunConfig, derive_seed, parse
from fedfuse.data.sample import SharedSamples
from fedfuse.errors import FedfuseError
from fedfuse.factory import models as factory_models
from fedfuse.factory.data import load_splits
from fedfuse.factory.models import check_model
from tests.conftest import Tiny

ROOT = Path(__file__).resolve().parents[2]
CODE = """
from fedfuse.config.run_config import RunConfig
from fedfuse.config.run_config import derive_seed
print(derive_seed(RunConfig(), "local", 1, 2))
"""


def test_seeds_are_distinct() -> None:
    uses = list(product(range(5), ("local", "distill", "server"), range(12), range(12)))
    seeds = {derive_seed(RunConfig(seed=seed), *use) for seed, *use in uses}
    assert len(seeds) == len(uses)
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_seeds_are_the_same_in_every_process() -> None:
    environment = os.environ | {"PYTHONHASHSEED": "5", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == derive_seed(RunConfig(), "local", 1, 2)


def test_seeds_do_not_depend_on_other_keys() -> None:
    assert derive_seed(parse({"rounds": 9}), "local", 0) == derive_seed(RunConfig(), "local", 0)


@pytest.mark.parametrize("name", ["builtin:none", "./no/folder", "~/no/such/folder"])
def test_missing_models_are_refused(name: str) -> None:
    with pytest.raises(FedfuseError, match=name):
        check_model(name)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedfuseError, match="cannot be loaded"):
        check_model(str(tmp_path))


def test_builtin_models_are_available() -> None:
    check_model("builtin:gpt2")


def test_number_of_clients_does_not_change_the_shared_sets() -> None:
    data = DataConfig(domains=2, private=20, public=3, holdout=2, test=1, questions=2)
    one, three = load_splits(data, 0, 1), load_splits(data, 0, 3)
    assert (one.public, one.test, one.questions) == (three.public, three.test, three.questions)
    together = sorted(sample.text for part in three.private for sample in part)
    assert together == sorted(sample.text for sample in one.private[0])


def test_a_model_shorter_than_the_runs_length_is_refused(
    monkeypatch: pytest.MonkeyPatch, tiny: Callable[[str], Tiny]
) -> None:
    short = tiny("gpt2")
    base = replace(short, name="short", max_length=100)
    monkeypatch.setattr(factory_models, "load_causal_lm", lambda *_, **__: base)
    shared = SharedSamples((), ())
    with pytest.raises(FedfuseError, match=r"max-length: expected at most 100.*short.*got 101"):
        factory_models.load_local_model("client", "short", ModelConfig(), shared, 101, 0)

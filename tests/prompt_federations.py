"""Whole federations that tune a prompt in seconds: a tiny world, few examples, small budgets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.clientapp import ClientApp

from clients.app import app as client_app
from fedfuse.builtin import models as builtin
from fedfuse.config.run_config import Scalar
from fedfuse.factory import feddtpt as factory
from tests.federations import federate

TINY = {
    "instructed-llama": {"width": 64, "drills": 200, "steps": 200, "exercises": 2000},
    "masked-bert": {"width": 32, "steps": 60, "exercises": 1000},
}
# The task that the tiny model has learned best: 2 labels, by letters.
KEYS: dict[str, Scalar] = {
    "strategy": "feddtpt",
    "baselines": False,
    "feddtpt__task": "amount-code",
    "feddtpt__examples__private": 4,
    "feddtpt__examples__public": 4,
    "feddtpt__examples__validation": 12,
    "feddtpt__examples__test": 20,
    "feddtpt__search__queries": 200,
    "feddtpt__search__patience": 12,
    # It names the aspect, and not that a letter is wanted.
    "feddtpt__start": "decide the number",
    "black_box__max_tokens": 2,
}


@pytest.fixture(scope="session")
def tiny_world() -> Iterator[None]:
    """The built-in world's models after a few seconds of training."""
    with pytest.MonkeyPatch.context() as patch:
        for name, smaller in TINY.items():
            recipe = replace(builtin.PROMPT_RECIPES[name], batch_size=32, **smaller)
            patch.setitem(builtin.PROMPT_RECIPES, name, recipe)
            builtin.build(f"builtin:{name}")
        forget()
        yield
    forget()


def forget() -> None:
    """What a new process does not know."""
    for cached in ("load_task", "load_masked_lm", "load_backend"):
        getattr(factory, cached).cache_clear()


def tune(
    output: Path,
    *,
    clients: int = 3,
    app: ClientApp = client_app,
    report: bool = False,
    **keys: Scalar,
) -> Path:
    """Tune a prompt in this process; as ``federate``."""
    return federate(output, clients=clients, app=app, report=report, **{**KEYS, **keys})

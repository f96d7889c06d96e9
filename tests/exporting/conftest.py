"""One federation, whose server and clients are exported."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedfuse.config.run_config import parse
from fedfuse.factory.data import load_splits
from tests.exporting.bases import padded_base
from tests.exporting.plain import Text
from tests.federations import about, federate, tiny_builtin

__all__ = ["tiny_builtin"]


@pytest.fixture(scope="package")
def run(tiny_builtin: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder: a server with tied weights, clients of four families, one with padded rows."""
    output = tmp_path_factory.mktemp("export")
    padded = padded_base(tiny_builtin["llama"], output / "padded-llama")
    models = f"builtin:gpt2, {padded}, builtin:opt, builtin:gpt-neox"
    steps = {"server_distill__learning_rate": 0.1, "local__learning_rate": 0.1}
    return federate(output, clients__model=models, **steps)


@pytest.fixture(scope="package")
def texts(run: Path) -> list[Text]:
    """The run's test set."""
    config = parse(about(run)["config"])
    test = load_splits(config.data, config.seed, 4).test
    return [(sample.domain, sample.prompt, sample.answer) for sample in test]

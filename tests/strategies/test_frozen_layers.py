"""A federation with adapters on the last layers: the same whether the others run once or always."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fedfuse.builtin import models as builtin
from fedfuse.config.run_config import parse
from fedfuse.factory.models import load_local_model
from fedfuse.simulation.run_memory import plan_simulation, table
from tests.federations import about, checkpoint, federate, lines

LAST: dict[str, Any] = {
    "strategy": "fedfuse",
    "clients": 2,
    "data__domains": 2,
    "data__blind": 4,
    "fusion__evidence": "blind",
    "labels_first": True,
    "server__lora_layers": 0.3,
    "clients__lora_layers": 1,
}


@pytest.fixture(scope="module", autouse=True)
def _deep(_tiny: None) -> Iterator[None]:
    """Models with layers to freeze."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("gpt2", "llama", "server"):
            patch.setitem(builtin.RECIPES, name, replace(builtin.RECIPES[name], layers=3))
            builtin.build(f"builtin:{name}")
        yield
    load_local_model.cache_clear()


def test_a_federation_ends_as_without_kept_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache" / "states"
    monkeypatch.setattr("fedfuse.factory.models.cache_root", lambda: folder.parent)
    whole = federate(
        tmp_path, name="whole", server__states_cache=0, clients__states_cache=0, **LAST
    )
    assert not folder.exists()
    load_local_model.cache_clear()
    kept = federate(tmp_path, name="kept", **LAST)
    files = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    # Server and clients, each its public, test and held-out samples, questions and blind ones.
    assert len(files) >= 3 * 4
    for one, other in zip(lines(kept, "metrics"), lines(whole, "metrics"), strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    found, right = checkpoint(kept), checkpoint(whole)
    trained = [name for name in right if "lora_B" in name and right[name].any()]
    assert trained
    for name in trained:
        np.testing.assert_allclose(found[name], right[name], atol=1e-4, err_msg=name)
    assert "in the last 1 of 3 layers" in str(about(kept))

    config = parse(about(kept)["config"])
    plan = plan_simulation(config, LAST["clients"], at_once=1)
    assert plan.on_disk == pytest.approx(sum(file.stat().st_size for file in files), rel=0.2)
    console = Console(width=100)
    with console.capture() as shown:
        console.print(table(plan))
    assert f"{plan.on_disk / 1e6:,.0f}" in shown.get().splitlines()[-1]
    few = replace(config.server, states_cache=1e-6), replace(config.clients, states_cache=2e-6)
    config = replace(config, server=few[0], clients=few[1])
    assert plan_simulation(config, LAST["clients"], at_once=1).on_disk == 2147

"""Settings refuse what would otherwise quietly be something else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedfuse.config.training import DIVERGENCES, Objective
from fedfuse.errors import FedfuseError


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_what_is_allowed(divergence: str) -> None:
    assert Objective(0.5, divergence).divergence == divergence


def test_all_that_is_wrong_is_named() -> None:
    with pytest.raises(
        FedfuseError, match=r"expected 'cross-entropy', .*'kl'; temperature: .* got 0"
    ) as all_:
        Objective(1.0, "kl", 0)
    assert "above 0" in str(all_.value)
    with pytest.raises(FedfuseError, match="temperature: expected above 0, got nan"):
        Objective(temperature=float("nan"))


def test_a_run_config_is_read_without_pytorch() -> None:
    code = "import sys, fedfuse.config.run_config; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"

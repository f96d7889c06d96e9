"""Tiny built-in models for every test of a strategy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.federations import tiny_builtin as tiny_builtin


@pytest.fixture(autouse=True, scope="package")
def _tiny(tiny_builtin: dict[str, Path]) -> None:
    pass

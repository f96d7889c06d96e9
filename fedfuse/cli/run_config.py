"""The run config of a command, from a TOML file and options."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedfuse.config.preset import flat_keys
from fedfuse.config.run_config import RunConfig, Scalar, flatten
from fedfuse.errors import FedfuseError, check


def read_config(path: Path | None, sets: Iterable[str]) -> dict[str, Any]:
    """Run config keys of a TOML file and of ``--set`` options, flat; the options win.

    Raises:
        FedfuseError: naming the file or option that cannot be read.
    """
    given: dict[str, Any] = {}
    if path is not None:
        try:
            given = flat_keys(tomllib.loads(path.read_text()))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise FedfuseError(f"{path}: expected a TOML file: {error}") from error
    standard = flatten(RunConfig())
    for option in sets:
        key, equals, value = option.partition("=")
        check("--set", repr(option), "KEY=VALUE", equals)
        given[key.strip()] = _typed(value.strip(), standard.get(key.strip(), ""))
    return given


def _typed(value: str, standard: Scalar) -> Any:
    """A command-line value in TOML's syntax; text needs no quotes where the key holds text."""
    if isinstance(standard, str):
        return value
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return value

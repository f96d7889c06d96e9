"""Presets: settings that fit together, by name, as TOML files in ``fedfuse/config/presets``.

A preset says what suits models and data of a kind; every key may be given all the same. In the run
config such a key is ``auto`` until it is given. All presets set the same keys.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fedfuse.config.model import ModelConfig

AUTO = "auto"
BUILTIN = "builtin:"
QUICKSTART, PRETRAINED = "quickstart", "pretrained"
PRESETS = (QUICKSTART, PRETRAINED, "fedmkt", "fusion-x")
_FOLDER = Path(__file__).with_name("presets")


@lru_cache
def preset(name: str) -> Mapping[str, Any]:
    """What a preset sets, flat with dotted keys, for ``name`` of ``PRESETS``."""
    content = tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    return MappingProxyType(flat_keys(content))


def with_preset(given: Mapping[str, Any]) -> dict[str, Any]:
    """The given keys, before them those of the preset that they name.

    ``auto`` is ``quickstart`` where the server has a built-in model, and else ``pretrained``. Of a
    preset that does not exist nothing is taken: whoever checks the keys will refuse it.
    """
    name = given.get("preset", AUTO)
    if name == AUTO:
        model = str(given.get("server.model", ModelConfig().model))
        name = QUICKSTART if model.startswith(BUILTIN) else PRETRAINED
    settings = preset(name) if name in PRESETS else {}
    own = {k: v for k, v in given.items() if not (v == AUTO and k in preset(QUICKSTART))}
    return {**settings, **own, "preset": name}


def flat_keys(given: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Run config keys as Flower spells them: dotted, with hyphens for underscores."""
    flat: dict[str, Any] = {}
    for key, value in given.items():
        name = prefix + key.replace("_", "-")
        flat |= flat_keys(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat

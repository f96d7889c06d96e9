"""The run config's keys with their meaning, as the docstrings of the dataclasses give it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple


class Key(NamedTuple):
    """One key of a config.

    Attributes:
        key: dotted and hyphenated, as ``parse`` takes it.
        default: its default.
        expected: valid values: a range, a choice, or the type.
        meaning: what the docstring says.
    """

    key: str
    default: bool | int | float | str
    expected: str
    meaning: str


def describe(config: Any, prefix: str = "") -> Iterator[Key]:
    """Every key of a config dataclass, in the order of the fields, sections last."""
    meanings = attributes(type(config))
    sections = []
    for item in fields(config):
        value, key = getattr(config, item.name), prefix + item.name.replace("_", "-")
        if "internal" in item.metadata:
            continue
        if "inline" in item.metadata:
            yield from describe(value, prefix + item.metadata["inline"])
        elif is_dataclass(value):
            sections.append((value, key + "."))
        else:
            kind = "true or false" if isinstance(value, bool) else "text"
            expected = item.metadata.get("expected", kind)
            yield Key(key, value, expected, meanings.get(item.name, ""))
    for value, start in sections:
        yield from describe(value, start)


def attributes(cls: type) -> dict[str, str]:
    """The attributes that docstrings of a class and its bases describe, on one line each."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        described = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        pairs = re.findall(r"^    (\w+): (.*(?:\n     +.*)*)", described, flags=re.MULTILINE)
        found |= {name: " ".join(text.split()) for name, text in pairs}
    return found

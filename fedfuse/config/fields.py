"""Fields of a config: a default, and which values it may have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import Field, field, fields
from math import isfinite
from typing import Any

from fedfuse.errors import FedfuseError


def between(
    default: float | int, low: float, high: float = float("inf"), *, above: bool = False
) -> Any:
    """A number in [low, high], or in (low, high] with ``above``."""
    bounds = f"{'above' if above else 'at least'} {low:g}"
    if high != float("inf"):
        bounds += f", at most {high:g}"
    check = lambda value: (  # noqa: E731
        isfinite(value) and (value > low if above else value >= low) and value <= high
    )
    return field(default=default, metadata={"expected": bounds, "check": check})


def count_or_share(default: float) -> Any:
    """A whole number, a share between 0 and 1, or 0."""
    check = lambda value: isfinite(value) and (0 <= value < 1 or value == int(value) > 0)  # noqa: E731
    expected = "a whole number, or a share below 1, or 0"
    return field(default=default, metadata={"expected": expected, "check": check})


def one_of(default: str | int, *choices: str | int) -> Any:
    """A value out of a fixed list."""
    metadata = {"expected": ", ".join(map(repr, choices)), "check": lambda value: value in choices}
    return field(default=default, metadata=metadata)


def text(default: str, *, empty: bool = False) -> Any:
    """Any text, by default not empty."""
    check = lambda value: empty or bool(value.strip(" ,"))  # noqa: E731
    expected = "text, or nothing" if empty else "text that is not empty"
    return field(default=default, metadata={"expected": expected, "check": check})


def name_of_variable() -> Any:
    """The name of an environment variable, or none. An error does not repeat the value: somebody
    may have put there what the variable should hold.
    """
    check = lambda value: re.fullmatch(r"([A-Za-z_][A-Za-z0-9_]*)?", value)  # noqa: E731
    expected = "the name of an environment variable: letters, digits, _"
    return field(default="", metadata={"expected": expected, "check": check, "hidden": True})


def is_service_url(url: str) -> bool:
    """Whether a URL is empty, or one that is safe in a log: no user, password, query, fragment."""
    if not url:
        return True
    import httpx  # not at the top: most configs name no service

    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    hidden = parsed.userinfo or parsed.query or parsed.fragment
    return parsed.scheme in ("http", "https") and bool(parsed.host) and not hidden


def words(default: Sequence[str], choices: Sequence[str]) -> Any:
    """One or more words out of a fixed list, joined by commas."""

    def check(value: str) -> bool:
        names = {name.strip() for name in value.split(",") if name.strip()}
        return bool(names) and names <= set(choices)

    metadata = {"expected": f"one or more of {', '.join(choices)}", "check": check}
    return field(default=", ".join(default), metadata=metadata)


def internal(default: Any) -> Any:
    """A value, or a field of one, for Python callers that is no key of the run config."""
    if isinstance(default, Field):
        return field(default=default.default, metadata=default.metadata | {"internal": True})
    return field(default=default, metadata={"internal": True})


def inline(default: Any, prefix: str = "") -> Any:
    """A dataclass whose fields are keys of the section that holds it, behind a prefix."""
    return field(default=default, metadata={"inline": prefix})


def check_fields(config: Any, name: str) -> None:
    """Check each field of a dataclass whose valid values are known.

    Raises:
        FedfuseError: naming the config and every value out of range.
    """
    given = [(item, getattr(config, item.name)) for item in fields(config)]
    wrong = [
        f"{item.name.replace('_', '-')}: expected {item.metadata['expected']}"
        + ("" if "hidden" in item.metadata else f", got {value!r}")
        for item, value in given
        if "check" in item.metadata and not item.metadata["check"](value)
    ]
    if wrong:
        raise FedfuseError(f"{name}: " + "; ".join(wrong))

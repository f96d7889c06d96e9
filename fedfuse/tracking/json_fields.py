"""Typed access to the JSON that a run leaves behind: errors name the file, the line and the key."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from fedfuse.errors import FedfuseError

T = TypeVar("T")


def clean(text: str) -> str:
    """One printable line: whatever else a name from outside may hold becomes a space.

    Control characters have no place in XML or on a terminal, lone surrogates none in UTF-8, and
    marks that turn the writing direction would scramble the text around them.
    """
    shown = (" " if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} else c for c in text)
    return " ".join("".join(shown).split())


class Fields:
    """One JSON object and the place it came from.

    Every getter raises FedfuseError, naming that place, the key, what is expected, and the value.
    """

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def refuse(self, key: str, expected: str) -> FedfuseError:
        """The error for a key's value."""
        got = repr(self.values[key]) if key in self.values else "no such key"
        return FedfuseError(f"{self.where}: {key!r}: expected {expected}, got {got}")

    def text(self, key: str) -> str:
        """Any text, made printable."""
        value = self.values.get(key)
        if not isinstance(value, str):
            raise self.refuse(key, "text")
        return clean(value)

    def optional_text(self, key: str) -> str | None:
        """Text, or null or no such key."""
        return None if self.values.get(key) is None else self.text(key)

    def one_of(self, key: str, choices: Iterable[str]) -> str:
        """A word out of a list."""
        value = self.text(key)
        if value not in (known := list(choices)):
            raise self.refuse(key, ", ".join(map(repr, known)))
        return value

    def integer(self, key: str) -> int:
        """A whole number, zero or more."""
        value = self.values.get(key)
        # bool is a subclass of int, so types are compared exactly.
        if type(value) is not int or value < 0:
            raise self.refuse(key, "a whole number of at least 0")
        return value

    def boolean(self, key: str) -> bool:
        """True or false."""
        value = self.values.get(key)
        if type(value) is not bool:
            raise self.refuse(key, "true or false")
        return value

    def number(self, key: str, low: float = float("-inf"), high: float = float("inf")) -> float:
        """A number in [low, high]; without bounds NaN passes too: a diverged loss is a result."""
        unbounded = (low, high) == (float("-inf"), float("inf"))
        error = self.refuse(key, "a number" if unbounded else f"a number from {low:g} to {high:g}")
        value = self.values.get(key)
        if type(value) is not int and type(value) is not float:
            raise error
        try:
            number = float(value)
        except OverflowError:
            raise error from None
        if not (unbounded or low <= number <= high):
            raise error
        return number

    def optional_number(
        self, key: str, low: float = float("-inf"), high: float = float("inf")
    ) -> float | None:
        """A number in [low, high], or null or no such key."""
        return None if self.values.get(key) is None else self.number(key, low, high)

    def numbers(self, low: float = float("-inf"), high: float = float("inf")) -> dict[str, float]:
        """All values, which are numbers in [low, high]."""
        return {key: self.number(key, low, high) for key in self.values}

    def mapping(self, key: str) -> Fields:
        """A nested object; its keys made printable."""
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self.refuse(key, "an object")
        cleaned = {clean(name): inner for name, inner in value.items()}
        return Fields(cleaned, f"{self.where}: {key!r}")

    def texts(self, key: str) -> dict[str, str]:
        """A nested object of texts."""
        inner = self.mapping(key)
        return {name: inner.text(name) for name in inner.values}

    def objects(self, key: str) -> list[Fields]:
        """A list of nested objects."""
        value = self.values.get(key)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.refuse(key, "a list of objects")
        return [Fields(item, f"{self.where}: {key!r}, {n}") for n, item in enumerate(value, 1)]

    def names(self, key: str) -> list[str]:
        """A list of texts."""
        value = self.values.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.refuse(key, "a list of texts")
        return [clean(item) for item in value]


def read_object(path: Path) -> Fields:
    """Read a file that holds one JSON object."""
    return _parse(_read(path), str(path))


def read_lines(path: Path, build: Callable[[Fields], T]) -> list[T]:
    """Read a JSON lines file; a file that is not there (yet) holds no lines."""
    if not path.exists():
        return []
    lines = enumerate(_read(path).split("\n"), 1)
    return [build(_parse(line, f"{path}, line {n}")) for n, line in lines if line.strip()]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FedfuseError(f"{path}: expected UTF-8 text, got {error}") from error


def _parse(text: str, where: str) -> Fields:
    try:
        values = json.loads(text)
    # A file nested a few thousand levels deep exhausts the stack of the parser.
    except (ValueError, RecursionError) as error:
        raise FedfuseError(f"{where}: expected JSON, got {error}") from error
    if not isinstance(values, dict):
        raise FedfuseError(f"{where}: expected a JSON object, got {text.strip()[:60]!r}")
    return Fields(values, where)

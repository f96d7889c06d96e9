"""Classes that a run config names: built-in ones by a name, your own as ``module:Class``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TypeVar, cast

from fedfuse.errors import FedfuseError

T = TypeVar("T")

# Classes of this process that no import finds, such as those of a function or a notebook.
_LOCAL: dict[str, type] = {}


def class_name(named: type | str) -> str:
    """Name of a class for a run config, ``module:Class``; a name stays what it is.

    A class that no import finds is known by its name in this process alone.
    """
    if isinstance(named, str):
        return named
    name = f"{named.__module__}:{named.__qualname__}"
    _LOCAL[name] = named
    return name


def load_class(key: str, name: str, builtin: Mapping[str, str], base: type) -> type[T]:
    """The class of a name.

    Args:
        key: key of the run config, for errors.
        name: name of a built-in class, or ``module:Class``.
        builtin: built-in classes by name, as ``module:Class``.
        base: class of which it must be a subclass.

    Raises:
        FedfuseError: when there is none of that name, or it is no such class.
    """
    expected = f"{', '.join(builtin)}, or module:Class with a subclass of {base.__name__}"
    module_name, colon, qualified_name = builtin.get(name, name).partition(":")
    if not colon:
        raise FedfuseError(f"{key} = {name!r}: expected {expected}")
    found: object = _LOCAL.get(name)
    if found is None:
        try:
            found = importlib.import_module(module_name)
            for part in qualified_name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise FedfuseError(f"{key} = {name!r}: {error}; expected {expected}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise FedfuseError(f"{key} = {name!r}: expected {expected}, got {found!r}")
    return cast(type[T], found)

"""Classes that a run config names: built-in ones by a name, your own as ``module:Class``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TypeVar, cast

from fedfuse.errors import FedfuseError

T = TypeVar("T")

# Classes of this process that no import finds, such as those of a function or a notebook.
_LOCAL: dict[str, type] = {}


def client_kind(strategy: str, client: str) -> str:
    """Name of the kind of client of a run.

    Args:
        strategy: ``strategy`` of the run config.
        client: ``client`` of the run config; empty for the strategy's.
    """
    return client or ("feddtpt" if strategy == "feddtpt" else "knowledge")


def class_name(named: type | str) -> str:
    """Name of a class for a run config, ``module:Class``; a name stays what it is.

    A class that no import finds is known by its name in this process alone.
    """
    if isinstance(named, str):
        return named
    name = f"{named.__module__}:{named.__qualname__}"
    _LOCAL[name] = named
    return name


def load_class(key: str, name: str, builtin: Mapping[str, type[T]], base: type) -> type[T]:
    """The class of a name.

    Args:
        key: of the run config, for errors.
        name: of a built-in class, or ``module:Class``.
        builtin: built-in classes by name.
        base: class that yours must be a subclass of.

    Raises:
        FedfuseError: when there is none of that name, or it is no such class.
    """
    if name in builtin:
        return builtin[name]
    allowed = f"{', '.join(builtin)}, or module:Class with a subclass of {base.__name__}"
    module_name, colon, qualified_name = name.partition(":")
    if not colon:
        raise FedfuseError(f"{key} = {name!r}: expected {allowed}")
    found: object = _LOCAL.get(name)
    if found is None:
        try:
            found = importlib.import_module(module_name)
            for part in qualified_name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise FedfuseError(f"{key} = {name!r}: {error}; expected {allowed}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise FedfuseError(f"{key} = {name!r}: expected {allowed}, got {found!r}")
    return cast(type[T], found)

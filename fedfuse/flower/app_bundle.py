"""Where the Flower app is: the folder that ``flwr run`` takes, and that the apps are imported from.

In a checkout, installed editable or simply on the path, it is the checkout. An installed wheel
carries the apps and their pyproject.toml inside the library, in ``fedfuse/_app``, so that
``strategies`` and ``clients`` are no names of site-packages. Flower wants the library in the app's
folder too: for it, a temporary folder is made of both, and removed when Python exits.
"""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from flwr.app import UserConfig, UserConfigValue
from flwr.common.config import flatten_dict
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fedfuse.errors import FedfuseError

PACKAGES = ("fedfuse", "strategies", "clients")
_LIBRARY = Path(__file__).resolve().parents[1]


def app_dir() -> Path:
    """The folder with the two apps and the pyproject.toml that describes them to Flower.

    Raises:
        FedfuseError: when fedfuse was neither checked out nor installed as a whole.
    """
    return find_app_dir(_LIBRARY)


@cache
def find_app_dir(library: Path) -> Path:
    """As ``app_dir``, for the package fedfuse that lies in the folder ``library``."""
    source = _source_dir(library)
    if source == library.parent:
        return source
    folder = Path(tempfile.mkdtemp(prefix="fedfuse-app-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    app = folder / "fedfuse"  # Flower wants the folder of an app to be named like one.
    ignore = shutil.ignore_patterns("__pycache__", "_app")
    shutil.copytree(source, app, ignore=ignore)
    shutil.copytree(library, app / "fedfuse", ignore=ignore)
    return app


def import_app_module(name: str) -> ModuleType:
    """Import a module of the two apps, such as ``strategies.app``, and no other of that name.

    From then on, modules are looked up in the app's folder first, in the working folder next (a
    user's own strategies) and then as before.

    Raises:
        FedfuseError: when another package of that name has been imported already, or fedfuse was
            neither checked out nor installed as a whole.
    """
    folder = _source_dir(_LIBRARY)
    others = [path for path in sys.path if path != str(folder)]
    own = [] if os.getcwd() in (str(folder), *others) else [os.getcwd()]
    sys.path[:] = [str(folder), *own, *others]
    package = importlib.import_module(name.partition(".")[0])
    found = getattr(package, "__file__", None)  # None for a folder without an __init__.py.
    if not Path(found or os.sep).resolve().is_relative_to(folder):
        raise FedfuseError(
            f"expected fedfuse's own package {package.__name__} in {folder}, got "
            f"{found}, which was imported before: give yours another name"
        )
    return importlib.import_module(name)


def default_run_config(app: Path) -> UserConfig:
    """The run config in an app's pyproject.toml, flat with dotted keys: ``local.learning-rate``.

    Raises:
        FedfuseError: when the folder has no pyproject.toml with a Flower app in it.
    """
    section = _flower_section(app)
    if not section:
        raise FedfuseError(f"{app / 'pyproject.toml'} has no section [tool.flwr.app]")
    return flatten_dict(section.get("config"))


def dependencies(app: Path) -> tuple[SpecifierSet, list[Requirement]]:
    """What an app's pyproject.toml asks for: versions of Python, and packages with theirs."""
    project = _content(app)["project"]
    return (
        SpecifierSet(project["requires-python"]),
        [Requirement(text) for text in project["dependencies"]],
    )


def check_scalars(name: str, config: Mapping[str, UserConfigValue]) -> None:
    """Refuse a config that Flower could not send.

    Raises:
        FedfuseError: for the first value that is no bool, int, float or str.
    """
    for key, value in config.items():
        if not isinstance(value, (bool, int, float, str)):
            raise FedfuseError(
                f"{name} key {key!r}: expected a bool, int, float or str, got {value!r}"
            )


def _source_dir(library: Path) -> Path:
    """The folder with the apps' own sources: the checkout, or ``_app`` of an installed wheel."""
    checkout, installed = library.parent, library / "_app"
    if (checkout / "pyproject.toml").is_file() and _flower_section(checkout):
        return checkout
    if (installed / "pyproject.toml").is_file():
        return installed
    raise FedfuseError(
        f"no Flower app around {library}: expected {checkout / 'pyproject.toml'} with a section "
        f"[tool.flwr.app], or {installed / 'pyproject.toml'}; install fedfuse again"
    )


def _flower_section(app: Path) -> dict[str, Any]:
    """What is under [tool.flwr.app]; empty where there is nothing."""
    section: dict[str, Any] = _content(app).get("tool", {}).get("flwr", {}).get("app", {})
    return section


def _content(app: Path) -> dict[str, Any]:
    """What an app's pyproject.toml says."""
    file = app / "pyproject.toml"
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FedfuseError(f"{file} cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise FedfuseError(f"{file} is no valid TOML: {error}") from error

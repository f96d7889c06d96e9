"""Where the Flower app is: the folder that ``flwr run`` takes.

In a checkout, installed editable or simply on the path, it is the checkout. An installed wheel has
no such folder: its packages lie in site-packages among everything else. Then a temporary folder is
made from them and the pyproject.toml that the wheel carries, and removed when Python exits.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
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
    checkout = library.parent
    if (checkout / "pyproject.toml").is_file() and _flower_section(checkout):
        return checkout
    if not (library / "_app" / "pyproject.toml").is_file():
        raise FedfuseError(
            f"no Flower app around {library}: neither {checkout / 'pyproject.toml'} with a section "
            f"[tool.flwr.app] nor {library / '_app' / 'pyproject.toml'}; install fedfuse again"
        )
    folder = Path(tempfile.mkdtemp(prefix="fedfuse-app-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    app = folder / "fedfuse"  # Flower wants the folder of an app to be named like one.
    for package in PACKAGES:
        shutil.copytree(
            checkout / package, app / package, ignore=shutil.ignore_patterns("__pycache__", "_app")
        )
    shutil.copy(library / "_app" / "pyproject.toml", app)
    return app


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
            raise FedfuseError(f"{name} key {key!r} is {value!r}; allowed: bool, int, float or str")


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

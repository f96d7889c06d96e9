"""The app's folder is found for a checkout and made for a wheel."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from fedfuse.errors import FedfuseError
from fedfuse.flower.app_bundle import (
    app_dir,
    check_scalars,
    default_run_config,
    find_app_dir,
    import_app_module,
)

ROOT = Path(__file__).resolve().parents[2]


def install(folder: Path) -> Path:
    """Something like an installed wheel; returns its package fedfuse."""
    for package in ("fedfuse", "fedfuse/_app/strategies", "fedfuse/_app/clients", "numpy"):
        (folder / package / "part").mkdir(parents=True)
        (folder / package / "__init__.py").write_text(f"# {package}")
        (folder / package / "part" / "code.py").write_text("")
        (folder / package / "__pycache__").mkdir()
    (folder / "fedfuse" / "_app" / "pyproject.toml").write_text("[tool.flwr.app.config]\na.b = 1\n")
    return folder / "fedfuse"


def test_a_checkout_is_the_app() -> None:
    assert app_dir() == ROOT
    assert (app_dir() / "fedfuse" / "flower").is_dir()


def test_a_wheel_is_copied_with_its_pyproject(tmp_path: Path) -> None:
    library = install(tmp_path / "site-packages")
    app = find_app_dir(library)
    files = sorted(str(file.relative_to(app)) for file in app.rglob("*") if file.is_file())
    assert files == [
        "clients/__init__.py",
        "clients/part/code.py",
        "fedfuse/__init__.py",
        "fedfuse/part/code.py",
        "pyproject.toml",
        "strategies/__init__.py",
        "strategies/part/code.py",
    ]
    assert default_run_config(app) == {"a.b": 1}
    assert find_app_dir(library) == app  # Made once.


def test_another_projects_pyproject_is_not_taken(tmp_path: Path) -> None:
    library = install(tmp_path)
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    assert find_app_dir(library) != tmp_path


def test_half_an_installation_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FedfuseError, match="no Flower app around"):
        find_app_dir(tmp_path / "fedfuse")


def test_the_default_run_config_is_flat(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        "[tool.flwr.app.config]\nrounds = 3\nlocal.rate = 1e-4\n"
        '[tool.flwr.app.config.data]\nsource = "x"\n[tool.flwr.app.config.data.deep]\non = true\n'
    )
    assert default_run_config(tmp_path) == {
        "rounds": 3,
        "local.rate": 1e-4,
        "data.source": "x",
        "data.deep.on": True,
    }


def test_no_config_is_an_empty_config(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.flwr.app]\npublisher = "me"\n')
    assert default_run_config(tmp_path) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("a = [", "no valid TOML"), ("a = 1", "no section")],
)
def test_folders_without_an_app(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "pyproject.toml").write_text(content)
    with pytest.raises(FedfuseError, match=message):
        default_run_config(tmp_path)


def test_scalars() -> None:
    check_scalars("run config", {"a": True, "b": 1, "c": 1.5, "d": "x"})
    with pytest.raises(FedfuseError, match="run config key"):
        check_scalars("run config", {"e": {}})  # type: ignore[dict-item]


def test_the_app_goes_before_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["/elsewhere", str(ROOT)])
    for _ in range(2):
        assert import_app_module("strategies.registry").__file__ == str(
            ROOT / "strategies" / "registry.py"
        )
        assert sys.path == [str(ROOT), str(tmp_path), "/elsewhere"]


def test_a_working_folder_on_the_path_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "path", ["/elsewhere", "/"])
    import_app_module("clients")
    assert sys.path == [str(ROOT), "/elsewhere", "/"]


def test_another_package_of_the_name_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "clients", ModuleType("clients"))
    with pytest.raises(FedfuseError, match=r"expected fedfuse's own package clients in .*, got"):
        import_app_module("clients.app")

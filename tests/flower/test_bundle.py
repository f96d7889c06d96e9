"""The three packages import from a Flower app bundle, an editable install and a wheel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from flwr.common.constant import FAB_MAX_SIZE

from fedfuse.flower.app_bundle import PACKAGES, default_run_config

ROOT = Path(__file__).resolve().parents[2]

# Imports every package that there is, so that none is missing; says where they come from.
IMPORT = """
import importlib, json, pkgutil, sys
places = {}
for name in ("fedfuse", "strategies", "clients"):
    package = importlib.import_module(name)
    places[name] = str(package.__path__[0])
    for part in pkgutil.iter_modules(package.__path__, name + "."):
        if part.ispkg:
            importlib.import_module(part.name)
print(json.dumps(places))
"""

# What ``fedfuse`` itself asks: where the app is, and whether Flower would take it.
APP = """
import json
from flwr.cli.build import build_fab_from_disk
from flwr.cli.config_utils import load_and_validate
from fedfuse.flower.app_bundle import app_dir, default_run_config
app = app_dir()
load_and_validate(app / "pyproject.toml")
bundle = build_fab_from_disk(app)
print(json.dumps([str(app), default_run_config(app), len(bundle)]))
"""


def run_python(python: str, code: str, folder: Path) -> str:
    """The last line that a program prints, run in a folder and without this environment's paths."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "FLWR"))}
    done = subprocess.run(
        [python, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def package_files() -> set[str]:
    """The files of the three packages, as paths from the root."""
    files = (file for package in PACKAGES for file in (ROOT / package).rglob("*.*"))
    return {str(file.relative_to(ROOT)) for file in files if "__pycache__" not in file.parts}


def build(kind: str, folder: Path) -> Path:
    """Build a wheel, ordinary or editable, as pip does without build isolation."""
    code = f"from hatchling.build import build_{kind}; print(build_{kind}({str(folder)!r}))"
    return folder / run_python(sys.executable, code, ROOT)


@pytest.fixture
def environment(tmp_path: Path) -> tuple[str, Path]:
    """A new virtual environment that sees this one's packages but not what is editable in it.

    Returns its Python and its folder of packages.
    """
    venv.create(tmp_path / "venv", symlinks=True)
    paths = sysconfig.get_paths(
        "venv", {"base": str(tmp_path / "venv"), "platbase": str(tmp_path / "venv")}
    )
    packages = Path(paths["purelib"])
    # Folders named in a .pth file are not searched for further .pth files.
    (packages / "outer.pth").write_text(sysconfig.get_path("purelib"))
    return str(Path(paths["scripts"]) / "python"), packages


def test_the_bundle(tmp_path: Path) -> None:
    home = {**os.environ, "FLWR_HOME": str(tmp_path / "home"), "FLWR_DISABLE_UPDATE_CHECK": "1"}
    flwr = Path(sysconfig.get_path("scripts")) / "flwr"
    done = subprocess.run(
        [flwr, "build", "--app", ROOT], cwd=tmp_path, env=home, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (bundle,) = tmp_path.glob("*.fab")
    assert bundle.stat().st_size < FAB_MAX_SIZE / 4
    with zipfile.ZipFile(bundle) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "app")
    tops = {name.partition("/")[0] for name in names}
    assert not tops & {"runs", "dist"}
    assert {"pyproject.toml", *package_files()} <= set(names)
    code = "import strategies.app, clients.app" + IMPORT
    places = json.loads(run_python(sys.executable, code, tmp_path / "app"))
    assert places == {name: str(tmp_path / "app" / name) for name in places}


def test_an_editable_install(environment: tuple[str, Path], tmp_path: Path) -> None:
    python, packages = environment
    with zipfile.ZipFile(build("editable", tmp_path)) as wheel:
        wheel.extractall(packages)
    places = json.loads(run_python(python, IMPORT, tmp_path))
    assert places == {name: str(ROOT / name) for name in places}
    app, _, size = json.loads(run_python(python, APP, tmp_path))
    assert app == str(ROOT)
    assert size < FAB_MAX_SIZE


def test_a_wheel(environment: tuple[str, Path], tmp_path: Path) -> None:
    python, packages = environment
    with zipfile.ZipFile(build("wheel", tmp_path)) as wheel:
        names = set(wheel.namelist())
        assert {"fedfuse/_app/pyproject.toml", *package_files()} <= names
        assert not [name for name in names if name.startswith(("tests", "experiments"))]
        wheel.extractall(packages)
    places = json.loads(run_python(python, IMPORT, tmp_path))
    assert places == {name: str(packages / name) for name in places}
    app, config, size = json.loads(run_python(python, APP, tmp_path))
    assert Path(app) not in (ROOT, packages)
    assert not Path(app).exists()  # Removed when Python left.
    assert size < FAB_MAX_SIZE
    assert config == default_run_config(ROOT)

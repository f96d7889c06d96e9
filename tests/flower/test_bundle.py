"""The three packages import from a Flower app bundle, an editable install and a wheel.

A wheel brings one name into site-packages, and runs in a folder full of a user's own names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from flwr.common.constant import FAB_MAX_SIZE

from fedfuse.flower.app_bundle import PACKAGES, default_run_config
from tests.federations import FAST, about, lines
from tests.federations import tiny_builtin as tiny_builtin
from tests.processes import Traces
from tests.processes import traces as traces

ROOT = Path(__file__).resolve().parents[2]

# Imports every package that there is, so that none is missing; says where they come from.
IMPORT = """
import importlib, json, pkgutil, sys
from fedfuse.flower.app_bundle import import_app_module
places = {}
for name in ("fedfuse", "strategies", "clients"):
    package = (importlib.import_module if name == "fedfuse" else import_app_module)(name)
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


# What may lie in a user's working folder: names that the app or this checkout has too.
OWN_FILES = {
    "strategies/__init__.py": "raise SystemExit('the working folder came first')",
    "clients.py": "raise SystemExit('the working folder came first')",
    "experiments/__init__.py": "raise SystemExit('the working folder came first')",
    "own.py": (ROOT / "examples" / "own_client.py").read_text(),
}


def run(command: Sequence[str | Path], folder: Path) -> str:
    """The last line that a program prints, run in a folder and without this environment's paths."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "FLWR"))}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout.splitlines()[-1]


def run_python(python: str, code: str, folder: Path) -> str:
    """As ``run``, for a program given as text."""
    return run([python, "-c", code], folder)


def package_files() -> set[str]:
    """The modules of the three packages, as paths from the root."""
    files = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    return build("wheel", tmp_path_factory.mktemp("wheel"))


def install(wheel: Path, packages: Path) -> None:
    """Install a wheel alone into a folder of packages."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    subprocess.run([*pip, packages, wheel], check=True)


def test_a_wheel(wheel: Path, environment: tuple[str, Path], tmp_path: Path) -> None:
    python, packages = environment
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    apps = {f if f.startswith("fedfuse") else f"fedfuse/_app/{f}" for f in package_files()}
    assert {"fedfuse/_app/pyproject.toml", "fedfuse/py.typed", *apps} <= names
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"fedfuse"}
    assert not [name for name in names if "__pycache__" in name]
    install(wheel, packages)
    places = json.loads(run_python(python, IMPORT, tmp_path))
    inside = packages / "fedfuse" / "_app"
    assert places == {
        "fedfuse": str(packages / "fedfuse"),
        "strategies": str(inside / "strategies"),
        "clients": str(inside / "clients"),
    }
    app, config, size = json.loads(run_python(python, APP, tmp_path))
    assert ROOT not in (Path(app), *Path(app).parents)
    assert packages not in Path(app).parents
    assert not Path(app).exists()  # Removed when Python left.
    assert size < FAB_MAX_SIZE
    assert config == default_run_config(ROOT)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--in-process"], id="in process"),
        pytest.param([], id="Ray", marks=pytest.mark.slow),
    ],
)
def test_a_wheel_runs_beside_a_users_own_names(
    wheel: Path,
    environment: tuple[str, Path],
    tiny_builtin: dict[str, Path],
    tmp_path: Path,
    options: list[str],
    traces: Traces,
) -> None:
    """With a strategy and a client of the user's, and nothing is left behind."""
    python, packages = environment
    install(wheel, packages)
    for script in Path(sysconfig.get_path("scripts")).glob("fl*"):  # flwr, flower-superlink, ...
        code = script.read_text().partition("\n")[2]
        (Path(python).parent / script.name).write_text(f"#!{python}\n{code}")
        (Path(python).parent / script.name).chmod(0o755)
    folder = tmp_path / "work"
    for name, text in OWN_FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    keys = {
        **FAST,
        "strategy": "own:FarBetter",
        "server.model": tiny_builtin["server"],
        "clients.model": tiny_builtin["gpt2"],
        "baselines": "false",
        "labels-first": "false",
        "rounds": 1,
        "name": "beside",
    }
    sets = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
    # As a module: unlike the script fedfuse, that puts the working folder first on the path.
    command = [python, "-m", "fedfuse.cli", "simulate", "--clients", "2", *sets, *options]
    results = folder / "runs" / "beside"
    assert run(command, folder) == f"report: {results / 'report.html'}"
    assert about(results)["status"] == "finished"
    assert about(results)["config"]["strategy"] == "own:FarBetter"
    assert about(results)["config"]["client"] == "own:CautiousClient"
    assert {line["model"] for line in lines(results, "metrics")} == {"server", "0", "1"}
    assert all(line["error"] is None for line in lines(results, "messages"))
    assert (results / "clients" / "1" / "adapter" / "adapter_model.safetensors").exists()
    assert traces.processes() == []
    assert traces.files() == []

"""What ``import fedfuse`` gives, and the notebooks of examples/, run from top to bottom."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fedfuse
from fedfuse.config.preset import flat_keys
from fedfuse.errors import FedfuseError
from fedfuse.simulation import in_process
from fedfuse.simulation.simulate import strategy_name
from fedfuse.tracking.run_writer import RUN_ID
from tests.federations import FAST
from tests.federations import tiny_builtin as tiny_builtin

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


def test_every_public_name_is_there_and_described() -> None:
    for name in fedfuse.__all__:
        assert getattr(fedfuse, name) is not None
        assert name == "__version__" or f"``{name}" in (fedfuse.__doc__ or "")
    assert set(fedfuse.__all__) <= set(dir(fedfuse))
    with pytest.raises(AttributeError, match="nonsense"):
        fedfuse.nonsense  # noqa: B018


def test_the_version_is_the_package_s() -> None:
    assert fedfuse.__version__ == importlib.metadata.version("fedfuse")


def test_importing_it_imports_nothing_heavy() -> None:
    code = "import fedfuse, sys; print(sorted({'torch', 'flwr', 'ray'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_keywords_become_run_config_keys() -> None:
    given = {"min_clients": 2, "server_distill": {"learning_rate": 0.1}, "local.steps": 3}
    flat = {"min-clients": 2, "server-distill.learning-rate": 0.1, "local.steps": 3}
    assert flat_keys(given) == flat


def test_a_class_that_other_processes_cannot_import_is_refused() -> None:
    class Own:
        pass

    with pytest.raises(FedfuseError, match="class: expected one at the top of a module"):
        strategy_name(Own, in_process=False)
    from strategies.fedmkt import FedMKT

    assert strategy_name(FedMKT, in_process=False) == "strategies.fedmkt:FedMKT"


def test_a_simulation_from_python(
    tiny_builtin: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from strategies.fedmkt import FedMKT

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = {key: value for key, value in FAST.items() if key not in ("strategy", "rounds")}
    run = fedfuse.simulate(FedMKT, clients=2, rounds=1, config=config, baselines=False)
    assert run.folder == tmp_path / "runs" / "quickstart"
    assert run.rounds == 1
    assert {metric.model for metric in run.metrics} == {"server", "0", "1"}
    assert "federated" in run.table()
    assert run.report().stat().st_size > 1000
    assert fedfuse.Run.read(run.folder) == run


def test_a_run_finds_its_own_folder_where_another_took_the_name(
    tiny_builtin: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    started = in_process.run_in_process
    other = tmp_path / "runs" / "quickstart"

    def start_later(*arguments: Any) -> None:
        other.mkdir(parents=True)
        (other / "config.json").write_text(json.dumps({"id": "another"}))
        started(*arguments)

    monkeypatch.setattr(in_process, "run_in_process", start_later)
    config = {key: value for key, value in FAST.items() if key not in ("strategy", "rounds")}

    run = fedfuse.simulate("fedmkt", clients=2, rounds=1, config=config, baselines=False)

    assert run.folder == tmp_path / "runs" / "quickstart-2"
    assert [path.name for path in other.iterdir()] == ["config.json"]
    assert RUN_ID not in os.environ


def test_a_wrong_keyword_is_refused_by_name() -> None:
    with pytest.raises(FedfuseError, match=r"knowledge\.kk"):
        fedfuse.simulate(knowledge={"kk": 3})


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(
    notebook: Path,
    tiny_builtin: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = ModuleType(f"notebook_{notebook.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    cells = [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
    assert cells
    for number, cell in enumerate(cells, start=1):
        assert cell["outputs"] == [], "outputs do not belong into the repository"
        code = compile("".join(cell["source"]), f"{notebook.name}, cell {number}", "exec")
        exec(code, module.__dict__)
    assert capsys.readouterr().out

"""The documents name files and functions that exist, and every setting that they quote is one."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import deployment, simulation_memory
from experiments.faults import tables as faults
from experiments.prompts import continuous, many, realdata, world
from experiments.prompts import summary as prompts
from experiments.scale import draw as scale
from experiments.selection import draw as selection
from experiments.wire import rounds
from experiments.wire import run as one_round
from fedfuse.config.run_config import RunConfig, flatten

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    ROOT / name
    for name in (
        "ARCHITECTURE.md",
        *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
    )
]

LINK = re.compile(r"\[([^\]]*)\]\((?!https?:)([^)#]+)\)")
SETTING = re.compile(r"`([a-z]+(?:-[a-z]+)*\.[a-z]+(?:-[a-z]+)*)(?: = ([^`]+))?`")
SECTIONS = {key.partition(".")[0] for key in flatten(RunConfig()) if "." in key}


def names_in(file: Path) -> set[str]:
    """Functions and classes of a file, and ``Class.method``."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (part.name for part in node.body if isinstance(part, ast.FunctionDef))
            names |= {f"{node.name}.{method}" for method in methods}
    return names


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_what_they_name(document: Path) -> None:
    links = LINK.findall(document.read_text())
    assert links
    for text, target in links:
        file = document.parent / target
        assert file.exists(), f"{text}: {target} does not exist"
        if text.startswith("`") and file.suffix == ".py":
            assert text.strip("`") in names_in(file), f"{text} is not in {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_settings_exist(document: Path) -> None:
    known = flatten(RunConfig())
    settings = [
        s for s in SETTING.findall(document.read_text()) if s[0].partition(".")[0] in SECTIONS
    ]
    assert [key for key, _ in settings if key not in known] == []


def test_the_tree_in_the_architecture_is_complete() -> None:
    tree = (ROOT / "ARCHITECTURE.md").read_text().partition("## The tree")[2].split("```")[1]
    for folder in ("strategies", "clients"):
        modules = {file.name for file in (ROOT / folder).glob("*.py")} - {"__init__.py"}
        assert {name for name in modules if f"  {name} " not in tree} == set()
    packages = {file.parent.name for file in (ROOT / "fedfuse").glob("*/__init__.py")}
    assert {name for name in packages if f"  {name}/ " not in tree} == set()


def test_the_table_of_the_scale_study_is_its_results() -> None:
    results = json.loads((ROOT / "experiments" / "scale" / "results.json").read_text())
    assert scale.table(results["cells"]) in (ROOT / "docs" / "scale.md").read_text()


def test_the_tables_of_the_selection_study_are_its_results() -> None:
    results = json.loads((ROOT / "experiments" / "selection" / "results.json").read_text())
    text = (ROOT / "docs" / "selection.md").read_text()
    for table in selection.TABLES.values():
        assert table(results["summary"]) in text


def test_the_tables_of_the_wire_are_its_results() -> None:
    text = (ROOT / "docs" / "wire.md").read_text()
    for file, table in (("results", one_round.table), ("rounds", rounds.table)):
        results = json.loads((ROOT / "experiments" / "wire" / f"{file}.json").read_text())
        assert table(results["summary"]) in text


def test_the_table_of_a_messages_cost_is_its_results() -> None:
    file = ROOT / "benchmarks" / "results" / "deployment.json"
    results = json.loads(file.read_text())["results"]
    assert deployment.table(results) in (ROOT / "docs" / "deploy.md").read_text()


def test_the_table_of_a_simulations_memory_is_its_results() -> None:
    file = ROOT / "benchmarks" / "results" / "simulation_memory.json"
    found = json.loads(file.read_text())
    raw = found["raw"]
    assert simulation_memory.table(raw) in (ROOT / "docs" / "scale.md").read_text()
    # What the plan promises: one copy of the weights, and a peak within 15 %.
    assert found["results"]["copies_of_the_base_weights"] < 1.05
    assert all(0.85 < simulation_memory.ratio(raw, name) < 1.15 for name in raw["measured"])


def test_the_table_of_prompts_is_its_results() -> None:
    found = json.loads((ROOT / "experiments" / "prompts" / "results.json").read_text())
    assert found["summary"] == prompts.summarize(found["cells"], 256)
    assert prompts.table(found["summary"]) in (ROOT / "docs" / "prompts.md").read_text()


@pytest.mark.parametrize("experiment", [continuous, many, realdata, world])
def test_the_other_tables_of_prompts_are_their_results(experiment: ModuleType) -> None:
    name = experiment.__name__.rpartition(".")[2]
    found = json.loads((ROOT / "experiments" / "prompts" / f"{name}.json").read_text())
    assert found["summary"] == experiment.summarize(found["cells"])
    assert experiment.table(found["summary"]) in (ROOT / "docs" / "prompts.md").read_text()


def test_the_table_of_failures_is_their_results() -> None:
    folder = ROOT / "experiments" / "faults"
    names = ("kills", "chaos", "processes")
    found = [json.loads((folder / f"{name}.json").read_text()) for name in names]
    text = (ROOT / "docs" / "faults.md").read_text()
    assert faults.table(*(results["summary"] for results in found)) in text

"""Which part may import which, and other rules of the tree that can be read off the source.

The order of the folders inside fedfuse/ is the one that ARCHITECTURE.md declares.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fedfuse", "strategies", "clients")
TREES = (*PACKAGES, "experiments", "benchmarks")
MAX_LINES = 350

# Folder to what its files may not import.
FORBIDDEN = {
    "fedfuse": ("strategies", "clients", "experiments", "benchmarks"),
    "strategies": ("clients", "experiments", "benchmarks"),
    "clients": ("strategies", "experiments", "benchmarks"),
}
# Folders of fedfuse/ that may import Flower.
FLOWER = ("flower", "simulation", "deployment")
# Modules that turn bytes into running code.
UNSAFE = ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")


def files_of(folder: str) -> list[Path]:
    """The Python files under a folder of the checkout, as paths from its root."""
    files = sorted(file.relative_to(ROOT) for file in (ROOT / folder).rglob("*.py"))
    assert files or folder == "experiments", f"{folder} has no Python files"
    return files


def imports(tree: ast.AST) -> Iterator[str]:
    """Every absolute dotted name that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_by_name(tree: ast.AST) -> Iterator[str]:
    """Every literal name that ``importlib.import_module`` is called with."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            values = (arg.value for arg in node.args if isinstance(arg, ast.Constant))
            yield from (value for value in values if isinstance(value, str))


def within(name: str, package: str) -> bool:
    """Whether a dotted name is a package or something in it."""
    return name == package or name.startswith(package + ".")


def declared_order() -> list[tuple[str, ...]]:
    """The levels of fedfuse/ from the bottom to the top, as ARCHITECTURE.md declares them."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- order -->\n```\n(.*?)```", text, re.DOTALL)
    assert block, "ARCHITECTURE.md declares no order"
    levels = [re.findall(r"\w+", level) for level in block[1].split("<")]
    return [tuple(level) for level in levels]


def level_of(part: str) -> int:
    """The place of a folder or file of fedfuse/ in the declared order."""
    found = [number for number, level in enumerate(declared_order()) if part in level]
    assert len(found) == 1, f"ARCHITECTURE.md declares {len(found)} places for fedfuse/{part}"
    return found[0]


def wrong_imports(file: Path, tree: ast.AST) -> list[str]:
    """Imports that break the layers, for a file at a path from the root."""
    forbidden = FORBIDDEN.get(file.parts[0], ())
    part = file.parts[1].removesuffix(".py") if file.parts[0] == "fedfuse" else ""
    if part and part not in FLOWER:
        forbidden += ("flwr",)
    names = [*imports(tree), *imports_by_name(tree)]
    wrong = [name for name in names if any(within(name, f) for f in forbidden)]
    if part and part != "__init__":  # The public surface stands above everything.
        others = [(n.split(".")[1], n) for n in names if n.startswith("fedfuse.")]
        above = [n for other, n in others if other != part and level_of(other) >= level_of(part)]
        wrong += above
    return wrong


def relative_imports(file: Path, tree: ast.AST) -> list[str]:
    """Relative imports, which ``imports`` does not see."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level)
    return [f"from {'.' * node.level}{node.module or ''}" for node in nodes]


def unsafe_loading(file: Path, tree: ast.AST) -> list[str]:
    """Ways to run code that came with data: pickle, torch.load, a model's own code."""
    found = [name for name in imports(tree) if any(within(name, module) for module in UNSAFE)]
    found += [name for name in imports(tree) if name == "torch.load"]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load":
            found.append("torch.load")
        elif isinstance(node, ast.keyword) and node.arg:
            found += _switched_on(node.arg, node.value)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant):
                    found += _switched_on(key.value, value)
    return found


def _switched_on(name: object, value: ast.expr) -> list[str]:
    """The option, unless it is another one or literally False."""
    off = isinstance(value, ast.Constant) and value.value is False
    return [str(name)] if name in ("trust_remote_code", "allow_pickle") and not off else []


Rule = Callable[[Path, ast.AST], list[str]]


@pytest.mark.parametrize("rule", [wrong_imports, relative_imports, unsafe_loading])
def test_the_tree_keeps_the_rule(rule: Rule) -> None:
    files = [file for folder in TREES for file in files_of(folder)]
    found = {str(file): rule(file, ast.parse((ROOT / file).read_text())) for file in files}
    assert {file: breaches for file, breaches in found.items() if breaches} == {}


def test_every_folder_has_its_place() -> None:
    parts = {path.name.removesuffix(".py") for path in (ROOT / "fedfuse").iterdir()}
    parts -= {"__init__", "__pycache__", "py.typed", "_app"}
    assert parts == {part for level in declared_order() for part in level}


def circle(edges: Mapping[str, Collection[str]]) -> list[str]:
    """A circle of a graph, or nothing."""
    try:
        tuple(TopologicalSorter(edges).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def module_of(file: Path) -> str:
    """The dotted name of a file."""
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("folders", [False, True])
def test_there_is_no_circle(folders: bool) -> None:
    """Neither between files nor between folders, wherever in a file it is imported."""
    files = {module_of(file): file for tree in TREES for file in files_of(tree)}
    edges: dict[str, set[str]] = {}
    for module, file in files.items():
        for name in imports(ast.parse((ROOT / file).read_text())):
            # A name of a package's __init__ is that file; a name of a module is no file.
            found = name if name in files else name.rpartition(".")[0]
            if found not in files or files[found].name == "__init__.py":
                continue
            one, other = (
                (".".join(m.split(".")[:2]) for m in (module, found))
                if folders
                else (module, found)
            )
            if one != other and file.name != "__init__.py":
                edges.setdefault(one, set()).add(other)
    assert circle(edges) == []


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert not circle({"a": {"b", "c"}, "b": {"c"}})


@pytest.mark.parametrize(
    ("rule", "file", "source"),
    [
        (wrong_imports, "fedfuse/fusion/mixing.py", "import strategies"),
        (wrong_imports, "fedfuse/fusion/mixing.py", "from clients.app import app"),
        (wrong_imports, "fedfuse/fusion/mixing.py", "def f():\n    from flwr.app import Message"),
        (wrong_imports, "fedfuse/fusion/mixing.py", "from fedfuse.flower.messages import LOCAL"),
        (wrong_imports, "fedfuse/fusion/mixing.py", "from fedfuse import flower"),
        (wrong_imports, "fedfuse/fusion/mixing.py", "importlib.import_module('strategies.app')"),
        (wrong_imports, "fedfuse/knowledge/codec.py", "from fedfuse.distillation.loss import q"),
        (wrong_imports, "fedfuse/config/fields.py", "import fedfuse.data.sample"),
        (wrong_imports, "fedfuse/cli/main.py", "import flwr.cli.app"),
        (wrong_imports, "fedfuse/cli/main.py", "from strategies.app import app"),
        (wrong_imports, "fedfuse/simulation/in_process.py", "import strategies.app"),
        (wrong_imports, "strategies/base.py", "from clients import app"),
        (wrong_imports, "clients/app.py", "import strategies.base as base"),
        (wrong_imports, "clients/app.py", "import experiments.quickstart.run"),
        (wrong_imports, "fedfuse/report/table.py", "from benchmarks.harness import machine"),
        (relative_imports, "clients/app.py", "from . import baselines"),
        (unsafe_loading, "clients/app.py", "from pickle import loads"),
        (unsafe_loading, "clients/app.py", "from torch import load"),
        (unsafe_loading, "clients/app.py", "state = torch.load(path, weights_only=True)"),
        (unsafe_loading, "clients/app.py", "f(trust_remote_code=True)"),
        (unsafe_loading, "clients/app.py", "options = {'trust_remote_code': trust}"),
        (unsafe_loading, "clients/app.py", "np.load(path, allow_pickle=True)"),
    ],
)
def test_a_breach_is_found(rule: Rule, file: str, source: str) -> None:
    assert rule(Path(file), ast.parse(source))


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("fedfuse/data/partition.py", "from flwr_datasets.partitioner import IidPartitioner"),
        ("fedfuse/simulation/in_process.py", "from flwr.app import Message"),
        ("fedfuse/cli/main.py", "from fedfuse.simulation.flwr_run import flwr_run"),
        ("fedfuse/fusion/mixing.py", "from fedfuse.knowledge.codec import decode"),
        ("strategies/base.py", "from fedfuse.errors import FedfuseError\nimport flwr"),
        ("experiments/quickstart/run.py", "from strategies.app import app"),
        ("clients/app.py", "f(trust_remote_code=False)"),
    ],
)
def test_what_is_allowed_is_not_found(file: str, source: str) -> None:
    tree = ast.parse(source)
    assert not wrong_imports(Path(file), tree) + unsafe_loading(Path(file), tree)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_is_too_long(package: str) -> None:
    lengths = {str(file): len((ROOT / file).read_text().splitlines()) for file in files_of(package)}
    assert {file: length for file, length in lengths.items() if length > MAX_LINES} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_says_what_it_is_for(package: str) -> None:
    files = files_of(package)
    assert [str(f) for f in files if not ast.get_docstring(ast.parse((ROOT / f).read_text()))] == []
    folders = {file.parent for file in files}
    assert sorted(folders - {f.parent for f in files if f.name == "__init__.py"}) == []

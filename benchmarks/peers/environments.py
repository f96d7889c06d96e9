"""Virtual environments of the peers: ``python -m benchmarks.peers.environments``.

Each is made from the file of requirements that has its name, next to this one. PyTorch comes from
the index that pip is set to, as a build for CPUs where that index has one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.harness import ROOT

HERE = Path(__file__).parent
NAMES = tuple(sorted(file.stem for file in HERE.glob("*.txt")))
FOLDER = ROOT / ".venv-peers"


def environment(folder: Path, name: str) -> Path:
    """The interpreter of a peer's environment, which is made where it is missing or out of date.

    Args:
        folder: of all peers' environments.
        name: one of ``NAMES``.
    """
    home, wanted = folder / name, (HERE / f"{name}.txt").read_text()
    python, made_of = home / "bin" / "python", home / "requirements.txt"
    if made_of.is_file() and made_of.read_text() == wanted:
        return python
    print(f"making the environment {name}", file=sys.stderr, flush=True)
    shutil.rmtree(home, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    install = ["-m", "pip", "install", "--quiet", "--requirement", str(HERE / f"{name}.txt")]
    subprocess.run([str(python), *install], check=True)
    made_of.write_text(wanted)  # last, so that half an environment is made anew
    return python


def main(
    folder: Annotated[Path, typer.Option(help="Folder of the environments.")] = FOLDER,
) -> None:
    """Make all environments that are missing or out of date."""
    for name in NAMES:
        print(environment(folder.resolve(), name))


if __name__ == "__main__":
    typer.run(main)

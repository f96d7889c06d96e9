"""The command line ``fedfuse``: its commands, one file each."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from fedfuse.cli.align import align
from fedfuse.cli.certs import certs
from fedfuse.cli.config import config
from fedfuse.cli.eval import evaluate
from fedfuse.cli.export import export
from fedfuse.cli.extract import extract
from fedfuse.cli.init import init
from fedfuse.cli.inspect import inspect
from fedfuse.cli.node import node
from fedfuse.cli.report import report
from fedfuse.cli.simulate import simulate
from fedfuse.cli.status import status
from fedfuse.errors import FedfuseError

# Without what variables hold when something breaks: private texts, keys.
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_show_locals=False,
)
console = Console(stderr=True)
for command in (init, simulate, report, export, config, align, extract, inspect, status):
    app.command()(command)
app.command("eval")(evaluate)
app.add_typer(certs, name="certs")
app.add_typer(node, name="node")


@app.callback()
def root() -> None:
    """Federated knowledge exchange between different language models."""


def main() -> None:
    """Entry point: a FedfuseError becomes one message and exit status 1."""
    try:
        app()
    except FedfuseError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()

"""The command ``fedfuse certs``: the certificates and keys of a deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

certs = typer.Typer(no_args_is_help=True, help="Make the certificates and keys of a deployment.")

FOLDER = typer.Option(help="Folder of the files.")


@certs.command()
def superlink(
    names: Annotated[
        list[str], typer.Argument(help="Host names and IP addresses that clients connect to.")
    ],
    folder: Annotated[Path, FOLDER] = Path(),
) -> None:
    """Make the SuperLink's certificate, and the authority that signs it; again before it ends."""
    from fedfuse.deployment.certificates import make_superlink_files

    for file in make_superlink_files(folder, names):
        print(file)


@certs.command()
def node(
    names: Annotated[list[str], typer.Argument(help="A name for each machine.")],
    folder: Annotated[Path, FOLDER] = Path(),
) -> None:
    """Make a key for each machine; register its .pub with the SuperLink."""
    from fedfuse.deployment.certificates import make_node_files

    for name in names:
        for file in make_node_files(folder, name):
            print(file)

"""The command ``fedfuse node``: the check of a machine that takes part, and its worker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

node = typer.Typer(no_args_is_help=True, help="Check a machine, and run its worker.")


@node.command()
def check(
    config: Annotated[Path, typer.Argument(metavar="NODE.TOML", help="The node config.")],
    superlink: Annotated[
        str, typer.Option(help="HOST:PORT of the SuperLink; without it, no connection is checked.")
    ] = "",
    root_certificates: Annotated[
        Path, typer.Option(help="Certificate of the authority that the SuperLink's is from.")
    ] = Path("ca.crt"),
    auth_supernode_private_key: Annotated[Path, typer.Option(help="This machine's key.")] = Path(
        "node.key"
    ),
    run_config: Annotated[
        Path | None, typer.Option(help="TOML file with the keys of the run to take part in.")
    ] = None,
) -> None:
    """Check whether this machine can take part, and print what to fix; exits with 1 if not."""
    from fedfuse.cli.run_config import read_config
    from fedfuse.deployment.node_check import Machine, check_machine
    from fedfuse.deployment.superlink_client import Credentials

    credentials = Credentials(superlink, root_certificates, auth_supernode_private_key)
    machine = Machine(
        read_config(config, []), read_config(run_config, []), credentials if superlink else None
    )
    check_machine(machine)
    table = Table("check", "", "found", "to fix", box=SIMPLE_HEAD)
    for result in machine.results:
        sign = "[red]no[/red]" if result.fix else "[green]ok[/green]"
        table.add_row(result.check, sign, escape(result.found), escape(result.fix))
    Console().print(table)
    if not machine.ready:
        raise typer.Exit(1)


@node.command()
def worker(
    supernode: Annotated[
        str, typer.Option(help="Address of this machine's SuperNode.")
    ] = "127.0.0.1:9094",
) -> None:
    """Answer the messages of a SuperNode that runs with --isolation process, model kept loaded."""
    from fedfuse.deployment.worker import serve

    serve(supernode)

"""The command line: ``fedfuse simulate``, ``report``, and their helpers; other commands by name."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fedfuse.cli.align import align
from fedfuse.cli.inspect import inspect
from fedfuse.cli.node import keys, node
from fedfuse.cli.status import status
from fedfuse.config.run_config import RunConfig, Scalar, flatten, parse
from fedfuse.errors import FedfuseError

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
console = Console(stderr=True)
app.command()(align)
app.command()(inspect)
app.command()(status)
app.add_typer(keys, name="keys")
app.add_typer(node, name="node")

CONFIG_HELP = "TOML file with run config keys, such as experiments/quickstart/homogeneous.toml."
RESUME_HELP = "Run folder of a run that was cut off: go on after its last whole round."
RAY_HELP = "HOST:PORT of a Ray cluster that runs already; by default one for the run."
SET_HELP = "One run config key, such as local.steps=100. May be repeated."


@app.callback()
def root() -> None:
    """Federated knowledge exchange between different language models."""


@app.command()
def simulate(
    config: Annotated[Path | None, typer.Option(help=CONFIG_HELP)] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help=SET_HELP)] = None,
    clients: Annotated[int, typer.Option(min=1, help="Number of simulated clients.")] = 4,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="One process, without Ray: to debug, to test.")
    ] = False,
    cpus_per_client: Annotated[int, typer.Option(min=1, help="Ray CPUs per client.")] = 1,
    gpus_per_client: Annotated[
        float, typer.Option(min=0.0, help="Ray GPUs per client; 0.5 for two on one.")
    ] = 0.0,
    ray_address: Annotated[str, typer.Option(help=RAY_HELP)] = "",
    resume: Annotated[Path | None, typer.Option(help=RESUME_HELP)] = None,
) -> None:
    """Run a federation on this machine; the last lines are the result table and the report's
    path."""
    from fedfuse.simulation.simulate import resume_config, run_federation

    if resume:
        if config or sets:
            raise FedfuseError("--resume takes a run as it is; allowed: no --config or --set")
        resolved, clients = resume_config(resume, clients)
    else:
        resolved = parse(read_config(config, sets or []))
    folder = run_federation(
        resolved,
        clients,
        in_process=in_process,
        cpus_per_client=cpus_per_client,
        gpus_per_client=gpus_per_client,
        ray_address=ray_address,
    )
    _show(folder)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write report and headline picture of a run folder anew and print its table."""
    from fedfuse.report.run import Run

    Run.read(folder).report()
    _show(folder)


def read_config(path: Path | None, sets: Iterable[str]) -> dict[str, Any]:
    """Run config keys of a TOML file and of ``--set`` options, flat; the options win.

    Raises:
        FedfuseError: naming the file or option that cannot be read.
    """
    given: dict[str, Any] = {}
    if path is not None:
        try:
            given = _flat(tomllib.loads(path.read_text()))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise FedfuseError(f"{path}: {error}; allowed: a TOML file") from error
    standard = flatten(RunConfig())
    for option in sets:
        key, equals, value = option.partition("=")
        if not equals:
            raise FedfuseError(f"--set {option!r}: allowed: KEY=VALUE")
        given[key.strip()] = _typed(value.strip(), standard.get(key.strip(), ""))
    return given


def _show(folder: Path) -> None:
    """The last lines of a run: its table and where its report is."""
    from fedfuse.report.table import print_table
    from fedfuse.tracking.run import read_run

    print_table(read_run(folder))
    print(f"report: {folder / 'report.html'}", flush=True)


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def _typed(value: str, standard: Scalar) -> Any:
    """A command-line value in TOML's syntax; text needs no quotes where the key holds text."""
    if isinstance(standard, str):
        return value
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return value


def main() -> None:
    """Entry point: a FedfuseError becomes one message and exit status 1."""
    try:
        app()
    except FedfuseError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()

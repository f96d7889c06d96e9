"""The command line: ``fedfuse simulate``, ``report``, and their helpers; other commands by name."""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from fedfuse.cli.align import align
from fedfuse.cli.inspect import inspect
from fedfuse.cli.node import keys, node
from fedfuse.cli.status import status
from fedfuse.config.feddtpt import BlackBoxConfig
from fedfuse.config.run_config import RunConfig, Scalar, flatten, parse
from fedfuse.config.sections import BUILTIN_DATA
from fedfuse.data.records import local_path, looks_like_path
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
    from fedfuse.tracking.run_writer import free_folder

    if resume:
        if config or sets:
            raise FedfuseError("--resume takes a run as it is; allowed: no --config or --set")
        resolved, clients = read_cut_off(resume, clients)
    else:
        resolved = parse(read_config(config, sets or []))
    check_inputs(resolved, clients)
    build_models(_strategy(resolved).models(resolved, clients))
    resolved = absolute_paths(resolved)
    folder = resume.resolve() if resume else free_folder(Path(resolved.output), resolved.name)
    flat = flatten(replace(resolved, name=folder.name))
    if in_process:
        _in_process(flat, clients)
    else:
        _plan_memory(resolved, clients, cpus_per_client, gpus_per_client, ray_address)
        from fedfuse.flower.app_bundle import app_dir
        from fedfuse.simulation.flwr_run import simulate as run_flower

        run_flower(
            app_dir(),
            flat,
            clients,
            cpus_per_client=cpus_per_client,
            gpus_per_client=gpus_per_client,
            python_path=[Path.cwd()],
            ray_address=ray_address,
        )
    _show(folder)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write report and headline picture of a run folder anew and print its table."""
    from fedfuse.report.html import write_report
    from fedfuse.report.plots import save_headline
    from fedfuse.tracking.run import read_run

    save_headline(read_run(folder), folder / "headline")
    write_report(folder)
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


def read_cut_off(folder: Path, clients: int) -> tuple[RunConfig, int]:
    """The config to resume a run with, and its number of clients; the given one if none is known.

    Raises:
        FedfuseError: for a folder that holds no run, or one that has finished.
    """
    from fedfuse.tracking.run_writer import RunWriter

    folder = folder.expanduser().resolve()
    run = RunWriter.reopen(folder)
    place = {"name": folder.name, "output": str(folder.parent), "resume": str(folder)}
    return parse({**run.config, **place}), run.nodes or clients


def absolute_paths(config: RunConfig) -> RunConfig:
    """Paths relative to this folder made absolute: the apps run in folders of their own."""
    return replace(
        config,
        output=str(Path(config.output).expanduser().resolve()),
        data=replace(config.data, source="+".join(map(_absolute, config.data.source.split("+")))),
        server=replace(config.server, model=_absolute(config.server.model)),
        clients=replace(
            config.clients,
            model=",".join(_absolute_entry(e) for e in config.clients.model.split(",")),
        ),
        prompts=replace(
            config.prompts,
            task=_absolute(config.prompts.task),
            masked_lm=_absolute(config.prompts.masked_lm),
        ),
        black_box=replace(config.black_box, model=_absolute_model(config.black_box)),
    )


def check_inputs(config: RunConfig, clients: int) -> None:
    """Refuse what cannot work before any model is built or process started.

    Raises:
        FedfuseError: for data that cannot be split, models that do not exist, too few clients.
    """
    from fedfuse.tracking.run_writer import free_folder

    if clients < config.min_clients:
        raise FedfuseError(
            f"min-clients = {config.min_clients}: allowed: at most the number of clients, {clients}"
        )
    free_folder(Path(config.output).expanduser(), config.name)
    _strategy(config).check_inputs(config, clients)


def build_models(names: Iterable[str]) -> None:
    """Build the built-in models that are not cached yet, with a progress bar each."""
    from fedfuse.builtin.models import ensure

    bars: dict[str, TaskID] = {}
    columns = (TextColumn("building {task.description:18}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:

        def show(name: str, done: int, total: int) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name, total=total)
            progress.update(bars[name], completed=done)

        ensure(names, show, workers=min(4, os.cpu_count() or 1))


def _strategy(config: RunConfig) -> Any:
    """The strategy class that a run config names."""
    from fedfuse.flower.app_bundle import import_app_module

    return import_app_module("strategies.registry").find_strategy(config.strategy)


def _plan_memory(config: RunConfig, clients: int, cpus: int, gpus: float, ray_address: str) -> None:
    """Show what a simulation will take of this machine's memory, and refuse what does not fit."""
    from fedfuse.models.dry_run import NeedsUnknown
    from fedfuse.simulation import run_memory as memory
    from fedfuse.simulation.ray_cluster import find_nodes

    if ray_address:
        at_once = sum(n.clients(cpus, gpus) for n in find_nodes(ray_address) if n.here)
        at_once = min(clients, at_once)
    else:
        at_once = memory.clients_at_once(clients, cpus, gpus, os.cpu_count() or 1)
    try:
        plan = _strategy(config).plan_memory(config, clients, at_once, gpus)
    except NeedsUnknown as error:
        console.print(f"no memory plan: {error}", markup=False, highlight=False, soft_wrap=True)
        return
    if plan is not None:
        console.print(memory.table(plan))
        memory.check_machine(config, clients, plan, gpus)


def _in_process(flat: dict[str, Scalar], clients: int) -> None:
    """The two apps of pyproject.toml in this process; they are looked up by name, as Flower
    does."""
    from fedfuse.flower.app_bundle import import_app_module
    from fedfuse.simulation.in_process import run_in_process

    server_app = import_app_module("strategies.app").app
    client_app = import_app_module("clients.app").app
    run_in_process(server_app, client_app, flat, clients)


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


def _absolute(name: str) -> str:
    name = name.strip()
    path = local_path(name) if name != BUILTIN_DATA and looks_like_path(name) else None
    return name if path is None else str(path.resolve())


def _absolute_model(box: BlackBoxConfig) -> str:
    """What a service calls its model is no path, even where it looks like one."""
    return box.model if box.url else _absolute(box.model)


def _absolute_entry(entry: str) -> str:
    key, equals, value = entry.strip().partition("=")
    return f"{key}={_absolute(value)}" if equals else _absolute(entry)


def main() -> None:
    """Entry point: a FedfuseError becomes one message and exit status 1."""
    try:
        app()
    except FedfuseError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()

"""A whole federation on this machine, from Python or the command line: ``fedfuse.simulate``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from fedfuse.builtin.prompt_world import WORLD_TASKS
from fedfuse.config.data import BUILTIN_DATA
from fedfuse.config.feddtpt import BlackBoxConfig
from fedfuse.config.model import KNOWLEDGE, is_endpoint, is_knowledge_file
from fedfuse.config.preset import flat_keys, preset
from fedfuse.config.run_config import RunConfig, flatten, parse
from fedfuse.data.records import local_path
from fedfuse.errors import check
from fedfuse.flower.app_bundle import app_dir, import_app_module
from fedfuse.plugins import class_name
from fedfuse.report.run import Run
from fedfuse.simulation import data_fit
from fedfuse.tracking.run_writer import RUN_ID, RunWriter, find_folder, free_folder, new_id

console = Console(stderr=True)


def simulate(
    strategy: str | type | None = None,
    clients: int = 4,
    rounds: int | None = None,
    *,
    in_process: bool = True,
    cpus_per_client: int = 1,
    gpus_per_client: float = 0.0,
    ray_address: str = "",
    config: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Run:
    """Run a federation on this machine and return what it measured.

    >>> run = simulate("fedmkt", clients=2, rounds=1, local={"steps": 20}, baselines=False)
    >>> run.table()

    Args:
        strategy: name of a strategy, ``"module:Class"``, or a class; None for the preset's.
        clients: number of simulated clients.
        rounds: number of rounds; None for the run config's.
        in_process: one process, without Ray; with False Flower's simulation on Ray, which runs as
            many clients at once as the machine has cores for.
        cpus_per_client: Ray CPUs of a client, at least 1.
        gpus_per_client: Ray GPUs of a client; 0.5 for two on one.
        ray_address: ``HOST:PORT`` of a Ray cluster that runs already; by default one for the run.
        config: run config keys as in a TOML file, nested or dotted: ``{"local.steps": 20}``.
        overrides: the same as keywords, with underscores: ``min_clients=2``,
            ``server_distill={"learning_rate": 1e-4}``.

    Returns:
        The run: ``table()``, ``metrics``, ``report()``, and its ``folder``.

    Raises:
        FedfuseError: naming each key, file or model that cannot be used, before anything is
            trained; and for a federation that failed.
    """
    given = {**flat_keys(config or {}), **flat_keys(overrides)}
    if strategy is not None:
        given["strategy"] = strategy_name(strategy, in_process=in_process)
    if rounds is not None:
        given["rounds"] = rounds
    folder = run_federation(
        parse(given),
        clients,
        in_process=in_process,
        cpus_per_client=cpus_per_client,
        gpus_per_client=gpus_per_client,
        ray_address=ray_address,
    )
    return Run.read(folder)


def run_federation(
    config: RunConfig,
    clients: int,
    *,
    in_process: bool = False,
    cpus_per_client: int = 1,
    gpus_per_client: float = 0.0,
    ray_address: str = "",
) -> Path:
    """Check the inputs, build missing built-in models, run, and return the run folder.

    Raises:
        FedfuseError: as ``simulate`` does.
    """
    check_inputs(config, clients)
    show_preset(config)
    build_models(find_strategy(config).models(config, clients))
    show_fits(config, clients)
    config = import_app_module("strategies.registry").with_client(absolute_paths(config))
    check_importable(config.client, in_process=in_process)
    with _known_id() as run_id:
        _run(
            config,
            clients,
            in_process=in_process,
            cpus_per_client=cpus_per_client,
            gpus_per_client=gpus_per_client,
            ray_address=ray_address,
        )
    # Another run may have taken the name meanwhile.
    return Path(config.resume) if config.resume else find_folder(Path(config.output), run_id)


@contextmanager
def _known_id() -> Iterator[str]:
    """Id that the run gets which is started now."""
    before, chosen = os.environ.get(RUN_ID), new_id()
    os.environ[RUN_ID] = chosen
    try:
        yield chosen
    finally:
        del os.environ[RUN_ID]
        if before is not None:
            os.environ[RUN_ID] = before


def _run(
    config: RunConfig,
    clients: int,
    *,
    in_process: bool,
    cpus_per_client: int,
    gpus_per_client: float,
    ray_address: str,
) -> None:
    flat = flatten(config)
    if in_process:
        from fedfuse.simulation.in_process import run_in_process

        threads = torch.get_num_threads()
        try:
            server_app, client_app = (
                import_app_module(f"{side}.app").app for side in ("strategies", "clients")
            )
            run_in_process(server_app, client_app, flat, clients)
        finally:
            torch.set_num_threads(threads)
        return
    from fedfuse.simulation.flwr_run import flwr_run

    flwr_run(
        app_dir(),
        flat,
        clients,
        cpus_per_client=cpus_per_client,
        gpus_per_client=gpus_per_client,
        python_path=[Path.cwd()],
        ray_address=ray_address,
        meanwhile=lambda: plan_memory(
            config, clients, cpus_per_client, gpus_per_client, ray_address
        ),
    )


def strategy_name(strategy: str | type, *, in_process: bool) -> str:
    """Name by which the server finds a strategy: the class's module and qualified name.

    Raises:
        FedfuseError: for a class that processes of a Ray simulation could not import.
    """
    name = class_name(strategy)
    check_importable(name, in_process=in_process)
    return name


def check_importable(name: str, *, in_process: bool) -> None:
    """Refuse a class that only this process knows, where other processes must import it."""
    local = "<locals>" in name or name.startswith("__main__:")
    expected = "one at the top of a module that other processes can import"
    check("class", name, expected, in_process or not local)


def resume_config(folder: Path, clients: int) -> tuple[RunConfig, int]:
    """Config to resume a run with, and its number of clients; the given one if none is known.

    Raises:
        FedfuseError: for a folder that holds no run, or one that has finished.
    """
    folder = folder.expanduser().resolve()
    run = RunWriter.reopen(folder)
    place = {"name": folder.name, "output": str(folder.parent), "resume": str(folder)}
    return parse({**run.config, **place}), run.nodes or clients


def absolute_paths(config: RunConfig) -> RunConfig:
    """Make relative paths absolute: the apps run in folders of their own."""
    return replace(
        config,
        output=str(Path(config.output).expanduser().resolve()),
        data=replace(config.data, source="+".join(map(_absolute, config.data.source.split("+")))),
        server=replace(
            config.server,
            model=_absolute(config.server.model),
            tokenizer=_absolute(config.server.tokenizer),
        ),
        clients=replace(
            config.clients,
            model=_absolute_entries(config.clients.model),
            tokenizer=_absolute_entries(config.clients.tokenizer),
        ),
        feddtpt=replace(
            config.feddtpt,
            task=_absolute(config.feddtpt.task),
            masked_lm=_absolute(config.feddtpt.masked_lm),
        ),
        black_box=replace(config.black_box, model=_absolute_model(config.black_box)),
    )


def check_inputs(config: RunConfig, clients: int) -> None:
    """Refuse what cannot work before any model is built or process started.

    Raises:
        FedfuseError: for data that cannot be split, models that do not exist, too few clients.
    """
    expected = f"at most the number of clients, {clients}"
    check("min-clients", config.min_clients, expected, config.min_clients <= clients)
    free_folder(Path(config.output).expanduser(), config.name)
    find_strategy(config).check_inputs(config, clients)


def show_preset(config: RunConfig) -> None:
    """Show a run's preset, and the keys that are otherwise."""
    flat = flatten(config)
    other = [f"{k}={flat[k]}" for k, value in preset(config.preset).items() if flat[k] != value]
    but = f", but for {' '.join(other)}" if other else ""
    shown = f"preset {config.preset}{but} (fedfuse config --preset {config.preset} lists its keys)"
    console.print(shown, markup=False, highlight=False, soft_wrap=True)


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


def show_fits(config: RunConfig, clients: int) -> None:
    """Show how the data fits the models, which must be built, and refuse where too much is lost.

    Raises:
        FedfuseError: for a split of which too many answers are cut off.
    """
    if found := find_strategy(config).fits(config, clients):
        console.print(data_fit.table(found))
        data_fit.check_fits(found, config.data.max_length)


def find_strategy(config: RunConfig) -> Any:
    """The strategy class that a run config names.

    Raises:
        FedfuseError: when there is none of that name.
    """
    return import_app_module("strategies.registry").find_strategy(config.strategy)


def plan_memory(config: RunConfig, clients: int, cpus: int, gpus: float, ray_address: str) -> None:
    """Show the memory plan of a simulation, and refuse one that does not fit.

    Raises:
        FedfuseError: when the plan exceeds the machine's memory or a GPU's.
    """
    from fedfuse.models.dry_run import NeedsUnknown
    from fedfuse.simulation import run_memory
    from fedfuse.simulation.ray_cluster import find_nodes

    if ray_address:
        at_once = sum(n.clients(cpus, gpus) for n in find_nodes(ray_address) if n.here)
        at_once = min(clients, at_once)
    else:
        at_once = run_memory.clients_at_once(clients, cpus, gpus, os.cpu_count() or 1)
    try:
        plan = find_strategy(config).plan_memory(config, clients, at_once, gpus)
    except NeedsUnknown as error:
        console.print(f"no memory plan: {error}", markup=False, highlight=False, soft_wrap=True)
        return
    if plan is not None:
        console.print(run_memory.table(plan))
        run_memory.check_machine(config, clients, plan, gpus)


def _absolute(name: str) -> str:
    """A name of what is on this disk as its path, whether it looks like one or like a hub id."""
    name = name.strip()
    if is_endpoint(name):
        return name
    if is_knowledge_file(name):
        return KNOWLEDGE + str(Path(name.removeprefix(KNOWLEDGE)).expanduser().resolve())
    path = None if name in (BUILTIN_DATA, *WORLD_TASKS) else local_path(name)
    return name if path is None or not name else str(path.resolve())


def _absolute_model(box: BlackBoxConfig) -> str:
    """A service's name of its model is no path, even where it looks like one."""
    return box.model if box.url else _absolute(box.model)


def _absolute_entries(models: str) -> str:
    return ",".join(_absolute_entry(entry) for entry in models.split(","))


def _absolute_entry(entry: str) -> str:
    key, equals, value = entry.strip().partition("=")
    return f"{key}={_absolute(value)}" if equals else _absolute(entry)

"""The command ``fedfuse simulate``: a federation on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedfuse.cli.report import show_run
from fedfuse.cli.run_config import read_config
from fedfuse.config.run_config import parse
from fedfuse.errors import FedfuseError

CONFIG_HELP = "TOML file with run config keys, such as experiments/quickstart/homogeneous.toml."
RESUME_HELP = "Run folder of an interrupted run: go on after its last complete round."
RAY_HELP = "HOST:PORT of a running Ray cluster; by default one is started for the run."
SET_HELP = "One run config key, such as local.steps=100. May be repeated."


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
    """Run a federation on this machine.

    The last lines are the result table and the report's path.
    """
    from fedfuse.simulation.simulate import resume_config, run_federation

    if resume:
        if config or sets:
            raise FedfuseError("--resume: expected neither --config nor --set beside it")
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
    show_run(folder)

"""The command ``fedfuse init``: a run config for a user's own models and data."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedfuse.config.run_config import RunConfig, flatten, parse
from fedfuse.errors import check
from fedfuse.files import atomic_write

_ROUND_UP = 32


def init(
    data: Annotated[str, typer.Option(help="Data: a .jsonl file, a folder, a hub id; A+B.")],
    server: Annotated[str, typer.Option(help="The server's model: a folder or hub id.")],
    client_models: Annotated[
        str, typer.Option("--clients", help="The clients' models, joined by commas.")
    ],
    number: Annotated[int, typer.Option(min=1, help="Number of clients.")] = 2,
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("federation.toml"),
) -> None:
    """Look at models and data, and write a run config that suits them, with comments.

    Every model is loaded and trained for three steps, to guess how long a run takes.
    """
    from fedfuse.factory.models import base_models, check_model
    from fedfuse.models.dry_run import NeedsUnknown
    from fedfuse.simulation import data_fit, first_look, run_memory
    from fedfuse.simulation.simulate import absolute_paths, build_models, find_strategy

    check("--output", repr(str(output)), "a file that is not there yet", not output.exists())
    given = {"data.source": data, "server.model": server, "clients.model": client_models}
    config = absolute_paths(parse(given | {"name": output.stem, "min-clients": min(2, number)}))
    for name in dict.fromkeys(base_models(config, number)):
        check_model(name)
    build_models(base_models(config, number))
    found = first_look.sizes(config.data.source, config.seed, config.data)
    config = parse(flatten(config) | {f"data.{name}": size for name, size in found.items()})
    lengths = first_look.lengths(config, number)
    most = max(length.most for length in lengths.values())
    limit, shortest = first_look.shortest_limit(config, number)
    wanted = min(limit, -(-most // _ROUND_UP) * _ROUND_UP)
    config = replace(config, data=replace(config.data, max_length=wanted))

    console = Console(stderr=True)
    fits = data_fit.fits(config, number)
    console.print(data_fit.table(fits))
    data_fit.check_fits(fits, wanted)
    at_once = run_memory.clients_at_once(number, 1, 0.0, os.cpu_count() or 1)
    memory = "unknown"
    try:
        plan = find_strategy(config).plan_memory(config, number, at_once, 0.0)
        if plan is not None:
            console.print(run_memory.table(plan))
            memory = f"{plan.total / 1e9:.1f} GB with {at_once} clients at once"
    except NeedsUnknown as error:
        memory = f"unknown: {error}"
    console.print("timing three steps of each model ...")
    steps = first_look.step_seconds(config, number)
    seconds = first_look.run_seconds(config, number, at_once, steps)
    duration = _duration(seconds)
    facts = [
        f"A run takes about {duration} on this machine, once its processes have started; "
        f"memory: {memory}."
    ]
    if most > limit:
        last = shortest.rsplit("/", 1)[-1]
        facts.append(
            f"{last} takes {limit} tokens at most: longer prompts lose their beginning, for all."
        )
    for name, length in lengths.items():
        step = f"; {steps[name]:.2g} s a training step" if name in steps else ""
        last = name.rsplit("/", 1)[-1]
        facts.append(
            f"{last}: texts of {length.median} tokens (99 %: {length.most}, longest: "
            f"{length.longest}), {length.shared:.0%} of the answers' tokens end where one of the "
            f"server's does{step}."
        )
    with atomic_write(output) as scratch:
        scratch.write_text(toml(config, number, facts), encoding="utf-8")
    console.print(f"{output}: fedfuse simulate --config {output} --clients {number}", markup=False)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def toml(config: RunConfig, clients: int, facts: list[str]) -> str:
    """The run config as TOML: what was found out, and behind every key what it means."""
    data = config.data
    baselines = str(config.baselines).lower()
    return "\n".join(
        [
            *(f"# {fact}" for fact in facts),
            f"# All other keys are those of the preset: fedfuse config --preset {config.preset}",
            "",
            f"name = {json.dumps(config.name)}",
            f"preset = {json.dumps(config.preset)}",
            f"rounds = {config.rounds}",
            f"min-clients = {config.min_clients}  # of {clients}",
            "# Training without the federation, to compare with; false takes a third of the time.",
            f"baselines = {baselines}",
            "",
            "[data]",
            f"source = {json.dumps(data.source)}",
            "# How private samples are dealt to clients; iid and dirichlet are others.",
            f"partition = {json.dumps(data.partition)}",
            "# Samples of a domain: for all, with answers; whose answers the server alone has, to",
            "# judge itself by, and to learn whom to trust; and to test.",
            f"public = {data.public}",
            f"holdout = {data.holdout}",
            f"blind = {data.blind}",
            f"test = {data.test}",
            "# Tokens: of 99 in 100 texts under any of the models, or as many as all models take.",
            f"max-length = {data.max_length}",
            "",
            "[server]",
            f"model = {json.dumps(config.server.model)}",
            "",
            "[clients]",
            f"model = {json.dumps(config.clients.model)}",
            "",
        ]
    )

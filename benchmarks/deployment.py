"""A message's cost beyond its work: ``python -m benchmarks.deployment --json FILE``.

One SuperLink, one SuperNode, the app itself with phases of one step. Once as Flower does it, a new
process for every message; once with ``fedfuse node worker`` beside the SuperNode, which stays. The
cost of a message is the time from sending to the reply, less what the same message takes where all
is in one process. It includes what Flower waits by itself: a SuperNode asks for messages every 3 s.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks.harness import File, Measured, benchmark
from clients.app import app as client_app
from fedfuse.config.run_config import flatten, parse
from fedfuse.flower.app_bundle import app_dir
from fedfuse.simulation.flwr_run import Workspace, free_port, start_superlink
from fedfuse.simulation.in_process import run_in_process
from strategies.app import app as server_app

SMALL = {
    "min-clients": 1,
    "baselines": False,
    "clients.model": "builtin:gpt2",
    "data.private": 24,
    "data.public": 4,
    "data.test": 1,
    "data.questions": 3,
    "local.steps": 1,
    "server-distill.steps": 1,
    "client-distill.steps": 1,
}
Lines = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class RunLines:
    """Records of a run: a line a message (with its seconds), and a line a measurement."""

    messages: Lines
    metrics: Lines


def deployed(config: Mapping[str, Any], *, resident: bool) -> RunLines:
    """A run on a SuperLink with one SuperNode.

    Raises:
        SimulationFailed: when the SuperLink does not start.
        SystemExit: when the run fails.
    """
    with Workspace([]) as workspace:
        # Flower's own interval.
        workspace.environment.pop("FLWR_SUPEREXEC_TASK_POLL_INTERVAL")
        superlink, port = start_superlink(workspace), str(free_port())
        node = ("--node-config", "partition-id=0 num-partitions=1 threads=1", "--port", port)
        isolation = ("--isolation", "process") if resident else ()
        options = ("--insecure", "--superlink", superlink, *node, *isolation)
        workspace.start("flower-supernode", *options, stdout=subprocess.DEVNULL)
        if resident:
            serving = ("node", "worker", "--supernode", f"127.0.0.1:{port}")
            workspace.start("fedfuse", *serving, stdout=subprocess.DEVNULL)
        run_file = workspace.folder / "run.toml"
        given = {**config, "output": str(workspace.folder)}
        run_file.write_text("".join(f"{key} = {json.dumps(v)}\n" for key, v in given.items()))
        arguments = ("run", str(app_dir()), "--stream", "--run-config", str(run_file))
        run = workspace.start("flwr", *arguments, stdout=subprocess.PIPE)
        log, _ = run.communicate()
        folder = workspace.folder / str(config["name"])
        if not (folder / "report.html").exists():
            raise SystemExit(f"the run failed:\n{log.decode(errors='replace')}")
        return read(folder)


def alone(config: Mapping[str, Any]) -> RunLines:
    """The same run in this process."""
    with tempfile.TemporaryDirectory() as folder:
        whole = flatten(parse({**config, "output": folder}))
        run_in_process(server_app, client_app, whole, 1)
        return read(Path(folder) / str(config["name"]))


def read(folder: Path) -> RunLines:
    """Read the lines of a run folder."""

    def lines(name: str) -> Lines:
        return [json.loads(line) for line in (folder / name).read_text().splitlines()]

    return RunLines(lines("messages.jsonl"), lines("metrics.jsonl"))


def seconds(run: RunLines) -> dict[str, list[float]]:
    """Seconds of the client's messages by type, from the second round on.

    Before, there are things that happen once in any case: libraries are read from disk, the app is
    installed, the model is loaded.
    """
    found: dict[str, list[float]] = {}
    for line in run.messages:
        if line["client"] != "server" and line["round"] > 1:
            found.setdefault(line["phase"], []).append(line["seconds"])
    return found


def cost(run: RunLines, work: RunLines) -> float:
    """Median seconds of a message beyond its work."""
    least = {phase: median(times) for phase, times in seconds(work).items()}
    over = [time - least[phase] for phase, times in seconds(run).items() for time in times]
    return median(over)


def table(results: Mapping[str, float]) -> str:
    """The results as docs/deploy.md has them."""
    names = {"new_process": "a new process for each", "resident": "`fedfuse node worker`"}
    rows = [
        f"| {text} | {results[f'{name}_seconds_per_message']:.1f} |" for name, text in names.items()
    ]
    return "\n".join(["| | seconds a message, beyond its work |", "|---|---|", *rows])


@benchmark
def main(
    file: File, rounds: Annotated[int, typer.Option(min=2, help="Rounds of each run.")] = 4
) -> Iterator[Measured]:
    """Measure both ways and write the ratio."""
    config = {**SMALL, "name": "cost", "rounds": rounds}
    work = alone(config)
    runs = {
        "new_process": deployed(config, resident=False),
        "resident": deployed(config, resident=True),
    }
    if any(run.metrics != work.metrics for run in runs.values()):
        raise SystemExit("the metrics of the runs differ: one of them does other work")
    costs = {name: cost(run, work) for name, run in runs.items()}
    yield Measured(
        {
            **{f"{name}_seconds_per_message": value for name, value in costs.items()},
            "resident_over_new_process": costs["resident"] / costs["new_process"],
        },
        {name: seconds(run) for name, run in {**runs, "work": work}.items()},
    )

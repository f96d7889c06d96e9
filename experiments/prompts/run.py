"""FedDTPT against its baselines and ablations: ``python -m experiments.prompts.run``.

One task of the built-in world, ten clients, private labels dealt evenly (``iid``) or by a Dirichlet
distribution of concentration 0.1. At every budget of queries: the whole method with search alone
and centralized search beside it, the best single client, and one client a round. At one budget:
the paper's own aggregation, its ablations and this project's choices. Every final prompt is also
asked of a second language model that it was not tuned on.

Runs that are finished are not run again; one that was stopped begins anew.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import track

from clients.app import app as client_app
from experiments.frame import put_table, write_results
from experiments.prompts.draw import draw
from experiments.prompts.summary import summarize, table
from fedfuse.builtin.models import build
from fedfuse.config.run_config import Scalar, flatten, parse
from fedfuse.factory.feddtpt import load_task
from fedfuse.feddtpt.black_box import BlackBox
from fedfuse.feddtpt.local_black_box import LocalModel
from fedfuse.models.causal_lm import load_causal_lm
from fedfuse.report.feddtpt import at_the_end, bytes_per_client_round, global_lines
from fedfuse.simulation.in_process import run_in_process
from fedfuse.tracking.run import RunFolder, read_run
from strategies.app import app as server_app

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
SECOND = "builtin:instructed-gpt-neox"
SKEWS = {"iid": 0.0, "dirichlet": 0.1}
# At every budget.
MAIN: dict[str, dict[str, Scalar]] = {
    "feddtpt": {"baselines": True},
    "best-client": {"prompts.aggregation": "best-client"},
    "one-client": {"prompts.clients-per-round": 1},
}
# At one.
ABLATIONS: dict[str, dict[str, Scalar]] = {
    "aggregated-only": {"prompts.choice": "aggregated"},
    "no-feedback": {"prompts.proposer": "masked-lm"},
    "random": {"prompts.proposer": "random"},
    **{
        name: {"prompts.aggregation": method, "prompts.choice": "none"}
        for name, method in (
            ("paper", "paper"),
            ("paper-average", "average"),
            ("paper-attention", "attention"),
            ("paper-k-means", "k-means"),
        )
    },
    "paper-no-feedback": {
        "prompts.aggregation": "paper",
        "prompts.choice": "none",
        "prompts.proposer": "masked-lm",
    },
    "paper-random": {
        "prompts.aggregation": "paper",
        "prompts.choice": "none",
        "prompts.proposer": "random",
    },
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One run.

    Attributes:
        variant: a key of ``MAIN`` or ``ABLATIONS``.
        skew: a key of ``SKEWS``.
        budget: queries of a client in a round, where all take part.
        seed: of the run.
    """

    variant: str
    skew: str
    budget: int
    seed: int

    @property
    def name(self) -> str:
        """Of its run folder."""
        return f"{self.variant}-{self.skew}-{self.budget}-{self.seed}"

    def keys(self, clients: int) -> dict[str, Scalar]:
        """Its run config, as far as cells differ."""
        alone = self.variant == "one-client"
        return {
            "strategy": "feddtpt",
            "baselines": False,
            "name": self.name,
            "seed": self.seed,
            # One client in place of all may ask as often as they together.
            "prompts.queries": self.budget * (clients if alone else 1),
            "prompts.alpha": SKEWS[self.skew],
            "black-box.max-tokens": 2,  # an answer is one word
            **(MAIN | ABLATIONS)[self.variant],
        }


def plan(seeds: Sequence[int], budgets: Sequence[int], ablated: int) -> list[Cell]:
    """All runs, seed by seed, so that what there is can be summed up when it is stopped."""
    return [
        Cell(variant, skew, budget, seed)
        for seed in seeds
        for skew in SKEWS
        for variants, where in ((MAIN, budgets), (ABLATIONS, [ablated]))
        for budget in where
        for variant in variants
    ]


def main(
    seeds: Annotated[str, typer.Option(help="Seeds, joined by commas.")] = "0,1,2,3,4",
    budgets: Annotated[
        str, typer.Option(help="Queries of a client in a round, joined by commas.")
    ] = "64,128,256,512",
    ablated: Annotated[int, typer.Option(help="The budget of the ablations.")] = 256,
    task: Annotated[str, typer.Option(help="Of the built-in world.")] = "goods-word",
    clients: Annotated[int, typer.Option(min=2, help="Their number.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Of each run.")] = 3,
    output: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs"),
    results: Annotated[Path, typer.Option(help="Where results go.")] = HERE / "results.json",
) -> None:
    """Run all cells; write results.json, and from the default place table and picture in docs/."""
    started = time.monotonic()
    numbers = [int(seed) for seed in seeds.split(",")]
    sizes = [int(budget) for budget in budgets.split(",")]
    shared: dict[str, Scalar] = {
        "rounds": rounds,
        "output": str(output.resolve() / f"experiment-prompts-{task}-{clients}-{rounds}"),
        "prompts.task": task,
    }
    cells = [
        measure(run_once({**shared, **cell.keys(clients)}, clients), cell)
        for cell in track(plan(numbers, sizes, ablated), "runs")
    ]
    summary = summarize(cells, ablated)
    write_results(
        results,
        command=f"python -m experiments.prompts.run --seeds {seeds} --budgets {budgets} "
        f"--ablated {ablated} --task {task} --clients {clients} --rounds {rounds}",
        started=started,
        summary=summary,
        cells=cells,
        seeds=numbers,
    )
    if results == HERE / "results.json":
        put_table(DOCS / "prompts.md", table(summary), "federation")
        draw(cells, DOCS / "prompts.svg")


def run_once(keys: Mapping[str, Scalar], clients: int) -> RunFolder:
    """The finished run of a config, run unless its folder has it."""
    folder = Path(str(keys["output"])) / str(keys["name"])
    if (folder / "config.json").exists():
        run = read_run(folder)
        if run.status == "finished":
            return run
    shutil.rmtree(folder, ignore_errors=True)
    run_in_process(server_app, client_app, flatten(parse(keys)), clients)
    return read_run(folder)


def measure(run: RunFolder, cell: Cell) -> dict[str, Any]:
    """What is kept of a run: accuracies in [0, 1] on the test set, queries, bytes, transfer."""
    manual, *rounds = global_lines(run)
    ends = {stage: at_the_end(run, stage) for stage in ("federated", "standalone", "centralized")}
    return {
        "variant": cell.variant,
        "skew": cell.skew,
        "budget": cell.budget,
        "seed": cell.seed,
        "manual": manual.test,
        "rounds": [{"queries": line.queries, "accuracy": line.test} for line in rounds],
        "prompt": rounds[-1].text,
        "accuracy": rounds[-1].test,
        "queries": rounds[-1].queries,
        "own": [line.test for line in ends["federated"]],
        "standalone": [line.test for line in ends["standalone"]],
        "centralized": [line.test for line in ends["centralized"]],
        "chosen": [made.chosen for made in run.aggregations],
        "bytes_per_client_round": bytes_per_client_round(run),
        "second": {"manual": second(run, manual.text), "accuracy": second(run, rounds[-1].text)},
    }


def second(run: RunFolder, prompt: str) -> float:
    """Accuracy of a prompt with the second language model."""
    return accuracy_of(run, prompt, second_model())


def accuracy_of(run: RunFolder, prompt: str, model: BlackBox) -> float:
    """Accuracy of a prompt with any language model, on the test set of a run."""
    config = parse(run.config)
    task, splits = load_task(config.prompts, config.data.template, config.seed, 1)
    questions = [task.question(prompt, example.text) for example in splits.test]
    return task.right(model.answer(questions), splits.test) / len(splits.test)


@cache
def second_model() -> LocalModel:
    """The model that no prompt was tuned on."""
    lm = load_causal_lm(str(build(SECOND)), device="cpu")
    return LocalModel(lm, max_tokens=2, batch_size=240)


if __name__ == "__main__":
    typer.run(main)

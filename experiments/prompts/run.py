"""FedDTPT against its baselines and ablations: ``python -m experiments.prompts.run``.

One task of the built-in world, ten clients, private labels dealt evenly (``iid``) or by a Dirichlet
distribution of concentration 0.1. At every budget of queries: the whole method with search alone
and centralized search beside it, the best single client, and one client a round. At one budget:
the paper's own aggregation, its ablations and this project's choices. Every final prompt is also
asked of a second language model that it was not tuned on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import typer

from experiments import harness
from experiments.federations import run_once
from experiments.prompts.draw import draw
from experiments.prompts.summary import summarize, table
from experiments.prompts.world import local_black_box
from fedfuse.config.run_config import Scalar, parse
from fedfuse.factory.feddtpt import load_task
from fedfuse.feddtpt.black_box import BlackBox
from fedfuse.report.feddtpt import at_the_end, bytes_per_client_round, global_lines
from fedfuse.tracking.run import RunFolder

# Options of several studies of FedDTPT.
Task = Annotated[str, typer.Option(help="Task of the built-in world.")]
Clients = Annotated[int, typer.Option(min=2, help="Number of clients.")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds of each run.")]

SECOND = "builtin:instructed-gpt-neox"
SKEWS = {"iid": 0.0, "dirichlet": 0.1}
# At every budget.
MAIN: dict[str, dict[str, Scalar]] = {
    "feddtpt": {"baselines": True},
    "best-client": {"feddtpt.aggregation.method": "best-client"},
    "one-client": {"feddtpt.clients-per-round": 1},
}
# At one.
ABLATIONS: dict[str, dict[str, Scalar]] = {
    "aggregated-only": {"feddtpt.candidates": "aggregated"},
    "no-feedback": {"feddtpt.search.proposer": "masked-lm"},
    "random": {"feddtpt.search.proposer": "random"},
    **{
        name: {"feddtpt.aggregation.method": method, "feddtpt.candidates": "none"}
        for name, method in (
            ("paper", "paper"),
            ("paper-average", "average"),
            ("paper-attention", "attention"),
            ("paper-k-means", "k-means"),
        )
    },
    "paper-no-feedback": {
        "feddtpt.aggregation.method": "paper",
        "feddtpt.candidates": "none",
        "feddtpt.search.proposer": "masked-lm",
    },
    "paper-random": {
        "feddtpt.aggregation.method": "paper",
        "feddtpt.candidates": "none",
        "feddtpt.search.proposer": "random",
    },
}


@dataclass(frozen=True, slots=True)
class PromptRun:
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
    def key(self) -> harness.Key:
        """Its key, of which its run folder has its name."""
        return self.variant, self.skew, self.budget, self.seed

    def keys(self, clients: int) -> dict[str, Scalar]:
        """Its run config, as far as cells differ."""
        alone = self.variant == "one-client"
        return {
            "strategy": "feddtpt",
            "baselines": False,
            "name": harness.name_of(self.key),
            "seed": self.seed,
            # One client in place of all may ask as often as they together.
            "feddtpt.search.queries": self.budget * (clients if alone else 1),
            "feddtpt.alpha": SKEWS[self.skew],
            "black-box.max-tokens": 2,  # an answer is one word
            **(MAIN | ABLATIONS)[self.variant],
        }


def plan(seeds: Sequence[int], budgets: Sequence[int], ablated: int) -> list[PromptRun]:
    """All runs, seed by seed, so that what there is can be summed up when it is stopped."""
    return [
        PromptRun(variant, skew, budget, seed)
        for seed in seeds
        for skew in SKEWS
        for variants, where in ((MAIN, budgets), (ABLATIONS, [ablated]))
        for budget in where
        for variant in variants
    ]


def run_cell(cell: PromptRun, shared: Mapping[str, Scalar], clients: int) -> list[dict[str, Any]]:
    """One run and what is kept of it."""
    return [measure(run_once({**shared, **cell.keys(clients)}, clients), cell)]


def measure(run: RunFolder, cell: PromptRun) -> dict[str, Any]:
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
    """Accuracy of a prompt with the second language model, on which no prompt was tuned."""
    return accuracy_of(run, prompt, local_black_box(SECOND))


def accuracy_of(run: RunFolder, prompt: str, model: BlackBox) -> float:
    """Accuracy of a prompt with any language model, on the test set of a run."""
    config = parse(run.config)
    task, splits = load_task(config.feddtpt, config.data.template, config.seed, 1)
    questions = [task.question(prompt, example.text) for example in splits.test]
    return task.right(model.answer(questions), splits.test) / len(splits.test)


@harness.experiment(
    "results.json",
    "prompts.md",
    {"federation": table},
    lambda frame: draw(frame["cells"], harness.DOCS / "prompts.svg"),
)
def main(
    seeds: harness.Seeds = "0,1,2,3,4",
    budgets: Annotated[
        str, typer.Option(help="Queries of a client in a round, joined by commas.")
    ] = "64,128,256,512",
    ablated: Annotated[int, typer.Option(help="Budget of the ablations.")] = 256,
    task: Task = "goods-word",
    clients: Clients = 10,
    rounds: Rounds = 3,
    output: harness.Output = harness.RUNS,
    results: harness.Results = None,
) -> harness.Study:
    """Run all cells; write results.json, and unless it goes elsewhere publish it in docs/."""
    folder = f"prompts-{task}-{clients}-{rounds}"
    shared: dict[str, Scalar] = {
        "rounds": rounds,
        "output": str(output.resolve() / f"experiment-{folder}"),
        "feddtpt.task": task,
    }
    runs = plan(harness.numbers(seeds), harness.numbers(budgets), ablated)
    return harness.Study(
        cells={run.key: partial(run_cell, run, shared, clients) for run in runs},
        folder=folder,
        summarize=lambda cells: summarize(cells, ablated),
    )

"""FedDTPT against its baselines and ablations: ``python -m experiments.prompts.run``.

One task of the built-in world, ten clients, private labels dealt evenly (``iid``) or by a Dirichlet
distribution of concentration 0.1. At every budget of queries: the whole method with search alone
and centralized search beside it, the best single client, and one client a round. At one budget:
the paper's own aggregation, its ablations and this project's choices. Every final prompt is also
asked of a second language model that it was not tuned on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from experiments import harness
from experiments.federations import run_once
from experiments.prompts.summary import draw, summarize, table
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
    "one-client": {"clients-per-round": 1},
}
# At one.
PROPOSERS: dict[str, dict[str, Scalar]] = {
    "no-feedback": {"feddtpt.search.proposer": "masked-lm"},
    "random": {"feddtpt.search.proposer": "random"},
}
PAPER: dict[str, Scalar] = {"feddtpt.aggregation.method": "paper", "feddtpt.candidates": "none"}
ABLATIONS: dict[str, dict[str, Scalar]] = {
    "aggregated-only": {"feddtpt.candidates": "aggregated"},
    **PROPOSERS,
    "paper": PAPER,
    **{
        f"paper-{method}": PAPER | {"feddtpt.aggregation.method": method}
        for method in ("average", "attention", "k-means")
    },
    **{f"paper-{name}": PAPER | keys for name, keys in PROPOSERS.items()},
}


class PromptRun(NamedTuple):
    """One run."""

    variant: str  # a key of ``MAIN`` or ``ABLATIONS``
    skew: str  # a key of ``SKEWS``
    budget: int  # queries of a client in a round, where all take part
    seed: int

    def keys(self, clients: int) -> dict[str, Scalar]:
        """Its run config, as far as cells differ."""
        alone = self.variant == "one-client"
        # One client in place of all may ask as often as they together, and try as many paths.
        instead = {
            "feddtpt.search.queries": self.budget * clients,
            "feddtpt.search.restarts": clients - 1,
        }
        return {
            "strategy": "feddtpt",
            "baselines": False,
            "name": harness.name_of(self),
            "seed": self.seed,
            "feddtpt.search.queries": self.budget,
            **(instead if alone else {}),
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


def shared_keys(output: Path, folder: str, task: str, rounds: int) -> dict[str, Scalar]:
    """Run config of all runs of a study."""
    home = str(output.resolve() / f"experiment-{folder}")
    return {"rounds": rounds, "output": home, "feddtpt.task": task}


def run_cell(cell: PromptRun, shared: Mapping[str, Scalar], clients: int) -> list[dict[str, Any]]:
    """One run and what is kept of it."""
    return [measure(run_once({**shared, **cell.keys(clients)}, clients), cell)]


def measure(run: RunFolder, cell: PromptRun) -> dict[str, Any]:
    """What is kept of a run: accuracies in [0, 1] on the test set, queries, bytes, transfer."""
    found = accuracies(run)
    return {
        **cell._asdict(),
        **found,
        "chosen": [made.chosen for made in run.aggregations],
        "bytes_per_client_round": bytes_per_client_round(run),
        "second": {
            "manual": second(run, global_lines(run)[0].text),
            "accuracy": second(run, found["prompt"]),
        },
    }


def accuracies(run: RunFolder) -> dict[str, Any]:
    """Accuracies in [0, 1] on the test set, the queries paid for them, and the last prompt."""
    manual, *rounds = global_lines(run)
    ends = {"own": "federated", "standalone": "standalone", "centralized": "centralized"}
    return {
        "manual": manual.test,
        "rounds": [{"queries": line.queries, "accuracy": line.test} for line in rounds],
        "prompt": rounds[-1].text,
        "accuracy": rounds[-1].test,
        "queries": rounds[-1].queries,
        **{name: [line.test for line in at_the_end(run, stage)] for name, stage in ends.items()},
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


@harness.experiment("results.json", "prompts.md", {"federation": table}, draw)
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
) -> harness.Study:
    """Run all cells; write results.json, and unless it goes elsewhere publish it in docs/."""
    folder = f"prompts-{task}-{clients}-{rounds}"
    shared = shared_keys(output, folder, task, rounds)
    runs = plan(harness.numbers(seeds), harness.numbers(budgets), ablated)
    return harness.Study(
        cells={run: partial(run_cell, run, shared, clients) for run in runs},
        folder=folder,
        summarize=lambda cells: summarize(cells, ablated),
    )

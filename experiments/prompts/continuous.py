"""FedAvg of continuous prompts: ``python -m experiments.prompts.continuous``.

What it is worth that a model is no black box: the task, clients, skews and seeds of
``experiments.prompts.run``; an example that a client trains on counts as a query.
"""

from __future__ import annotations

from functools import partial
from statistics import mean
from typing import Annotated, Any

import typer

from experiments import harness
from experiments.prompts.run import SKEWS, Clients, Rounds, Task
from experiments.prompts.summary import percent
from fedfuse.builtin.models import build
from fedfuse.builtin.prompt_world import VAGUE, world_task
from fedfuse.config.feddtpt import ExampleCounts
from fedfuse.feddtpt.continuous import ContinuousPrompt, ContinuousSettings, fed_avg_prompts
from fedfuse.models.causal_lm import load_causal_lm

MODEL = "builtin:instructed-llama"


def measure(
    task: str, skew: str, clients: int, rounds: int, settings: ContinuousSettings, seed: int
) -> list[dict[str, Any]]:
    """Accuracies in [0, 1] on the test set, of the manual prompt's embeddings and after rounds."""
    world, alpha = world_task(task), SKEWS[skew]
    scheme = "dirichlet-equal" if alpha else "iid"
    splits = world.splits(ExampleCounts(), clients, scheme, alpha or 1.0, seed)
    lm = load_causal_lm(str(build(MODEL)), device="cpu")
    prompt = ContinuousPrompt(lm, world.task, VAGUE, max_tokens=2)
    accuracies = [prompt.accuracy(splits.test)]
    found = fed_avg_prompts(prompt, splits.private, splits.public, settings, rounds, seed)
    for embeddings in found:
        prompt.embeddings = embeddings
        accuracies.append(prompt.accuracy(splits.test))
    cell = {
        "skew": skew,
        "seed": seed,
        "accuracy": [round(value, 4) for value in accuracies],
        "bytes_per_client_round": 2 * prompt.embeddings.nbytes,  # down and up
    }
    return [cell]


def summarize(cells: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By skew: accuracy at the beginning and the end, mean and deviation over seeds."""
    return {
        skew: {
            "start": round(mean(cell["accuracy"][0] for cell in mine), 4),
            **harness.mean_and_std("accuracy", [cell["accuracy"][-1] for cell in mine]),
            "bytes_per_client_round": harness.mean_of(mine, "bytes_per_client_round", None),
        }
        for skew, mine in harness.grouped(cells, "skew").items()
    }


def table(summary: dict[str, dict[str, float]]) -> str:
    """Markdown, in percent."""
    rows = [
        (skew, f"{100 * row['start']:.0f}", percent(row), f"{row['bytes_per_client_round']:.0f}")
        for skew, row in summary.items()
    ]
    return harness.markdown(("skew", "start", "after", "bytes per client and round"), rows)


@harness.experiment("continuous.json", "prompts.md", {"continuous": table})
def main(
    seeds: harness.Seeds = "0,1,2,3,4",
    examples: Annotated[int, typer.Option(help="Examples of a client in a round.")] = 256,
    task: Task = "goods-word",
    clients: Clients = 10,
    rounds: Rounds = 3,
) -> harness.Study:
    """Run all cells; write the results, and unless they go elsewhere the table in docs/."""
    settings = ContinuousSettings(examples)
    return harness.Study(
        cells={
            (skew, seed): partial(measure, task, skew, clients, rounds, settings, seed)
            for seed in harness.numbers(seeds)
            for skew in SKEWS
        },
        folder=f"prompts-continuous-{task}-{clients}-{rounds}-{examples}",
        summarize=summarize,
    )

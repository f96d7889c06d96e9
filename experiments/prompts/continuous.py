"""FedAvg of continuous prompts: ``python -m experiments.prompts.continuous``.

What it is worth that a model is no black box: the task, clients, skews and seeds of
``experiments.prompts.run``; an example that a client trains on counts as a query.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer
from rich.progress import track

from experiments.frame import put_table, write_results
from experiments.prompts.run import DOCS, HERE, SKEWS
from fedfuse.builtin.models import build
from fedfuse.builtin.prompt_world import VAGUE, WorldSize, world_task
from fedfuse.feddtpt.continuous import ContinuousPrompt, ContinuousSettings, fed_avg_prompts
from fedfuse.models.causal_lm import load_causal_lm

MODEL = "builtin:instructed-llama"


def main(
    seeds: Annotated[str, typer.Option(help="Seeds, joined by commas.")] = "0,1,2,3,4",
    examples: Annotated[int, typer.Option(help="That a client trains on in a round.")] = 256,
    task: Annotated[str, typer.Option(help="Of the built-in world.")] = "goods-word",
    clients: Annotated[int, typer.Option(min=2, help="Their number.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Of each run.")] = 3,
    results: Annotated[Path, typer.Option(help="File to write.")] = HERE / "continuous.json",
) -> None:
    """Run all cells; write the results, and from the default place the table in docs/."""
    started = time.monotonic()
    numbers = [int(seed) for seed in seeds.split(",")]
    settings = ContinuousSettings(examples)
    cells = [
        measure(task, skew, clients, rounds, settings, seed)
        for seed in track(numbers, "seeds")
        for skew in SKEWS
    ]
    summary = summarize(cells)
    write_results(
        results,
        command=f"python -m experiments.prompts.continuous --seeds {seeds} "
        f"--examples {examples} --task {task} --clients {clients} --rounds {rounds}",
        started=started,
        summary=summary,
        cells=cells,
        seeds=numbers,
    )
    if results == HERE / "continuous.json":
        put_table(DOCS / "prompts.md", table(summary), "continuous")


def measure(
    task: str, skew: str, clients: int, rounds: int, settings: ContinuousSettings, seed: int
) -> dict[str, Any]:
    """Accuracies in [0, 1] on the test set, of the manual prompt's embeddings and after rounds."""
    world, alpha = world_task(task), SKEWS[skew]
    scheme = "dirichlet-equal" if alpha else "iid"
    splits = world.splits(WorldSize(), clients, scheme, alpha or 1.0, seed)
    lm = load_causal_lm(str(build(MODEL)), device="cpu")
    prompt = ContinuousPrompt(lm, world.task, VAGUE, max_tokens=2)
    accuracies = [prompt.accuracy(splits.test)]
    found = fed_avg_prompts(prompt, splits.private, splits.public, settings, rounds, seed)
    for embeddings in found:
        prompt.embeddings = embeddings
        accuracies.append(prompt.accuracy(splits.test))
    return {
        "skew": skew,
        "seed": seed,
        "accuracy": [round(value, 4) for value in accuracies],
        "bytes_per_client_round": 2 * prompt.embeddings.nbytes,  # down and up
    }


def summarize(cells: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By skew: accuracy at the beginning and the end, mean and deviation over seeds."""
    found = {}
    for skew in dict.fromkeys(cell["skew"] for cell in cells):
        mine = [cell for cell in cells if cell["skew"] == skew]
        last = [cell["accuracy"][-1] for cell in mine]
        found[skew] = {
            "start": round(mean(cell["accuracy"][0] for cell in mine), 4),
            "accuracy": round(mean(last), 4),
            "accuracy_std": round(stdev(last), 4) if len(last) > 1 else 0.0,
            "bytes_per_client_round": round(mean(c["bytes_per_client_round"] for c in mine)),
        }
    return found


def table(summary: dict[str, dict[str, float]]) -> str:
    """Markdown, in percent."""
    lines = ["| skew | start | after | bytes per client and round |", "|---|---:|---:|---:|"]
    for skew, row in summary.items():
        after = f"{100 * row['accuracy']:.0f} ± {100 * row['accuracy_std']:.0f}"
        size = row["bytes_per_client_round"]
        lines.append(f"| {skew} | {100 * row['start']:.0f} | {after} | {size:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)

"""When is one prompt of many better than the best of them: ``python -m experiments.prompts.many``.

Many clients that may ask little: each finds a part of what a good prompt must say, none the whole.
The run is the same but for the prompt that is made of all (``gain``) in one case, and not in the
other (``best-client``); the server's choice on validation examples is in both.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer
from rich.progress import track

from experiments.frame import put_table, write_results
from experiments.prompts.run import DOCS, HERE, SKEWS, Cell, run_once
from fedfuse.report.feddtpt import global_lines

PAIR = ("feddtpt", "best-client")


def main(
    seeds: Annotated[str, typer.Option(help="Seeds, joined by commas.")] = "0,1,2,3,4,5,6,7",
    clients: Annotated[int, typer.Option(min=2, help="Their number.")] = 30,
    queries: Annotated[int, typer.Option(min=1, help="Of a client in a round.")] = 64,
    task: Annotated[str, typer.Option(help="Of the built-in world.")] = "goods-word",
    rounds: Annotated[int, typer.Option(min=1, help="Of each run.")] = 3,
    output: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs"),
    results: Annotated[Path, typer.Option(help="File to write.")] = HERE / "many.json",
) -> None:
    """Run all cells; write the results, and from the default place the table in docs/."""
    started = time.monotonic()
    numbers = [int(seed) for seed in seeds.split(",")]
    shared = {
        "rounds": rounds,
        "output": str(output.resolve() / f"experiment-prompts-many-{task}-{clients}-{rounds}"),
        "prompts.task": task,
    }
    plan = [Cell(name, skew, queries, seed) for seed in numbers for skew in SKEWS for name in PAIR]
    cells = []
    for cell in track(plan, "runs"):
        run = run_once({**shared, **cell.keys(clients), "baselines": False}, clients)
        manual, *after = global_lines(run)
        cells.append(
            {
                "variant": cell.variant,
                "skew": cell.skew,
                "seed": cell.seed,
                "manual": round(manual.test, 4),
                "accuracy": [round(line.test, 4) for line in after],
                "chosen": [made.chosen for made in run.aggregations],
                "prompt": after[-1].text,
            }
        )
    summary = summarize(cells)
    write_results(
        results,
        command=f"python -m experiments.prompts.many --seeds {seeds} --clients {clients} "
        f"--queries {queries} --task {task} --rounds {rounds}",
        started=started,
        summary=summary,
        cells=cells,
        seeds=numbers,
    )
    if results == HERE / "many.json":
        put_table(DOCS / "prompts.md", table(summary), "many")


def summarize(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The gain after the last round, over both skews, and everything by skew and round."""
    rows = by_round(cells)
    last = {name: rows[-1][name] for name in ("gain_points", "gain_standard_error")}
    return {**last, "by_round": rows}


def by_round(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each skew, and for both, and each round.

    Accuracies are means over seeds, the gain is the mean of the differences within a seed.
    """
    found = []
    for skew in [*dict.fromkeys(cell["skew"] for cell in cells), "both"]:
        mine = [cell for cell in cells if skew in (cell["skew"], "both")]
        for number in range(len(mine[0]["accuracy"])):
            whole, single = (
                {(c["skew"], c["seed"]): c["accuracy"][number] for c in mine if c["variant"] == v}
                for v in PAIR
            )
            gains = [100 * (whole[pair] - single[pair]) for pair in whole]
            error = stdev(gains) / sqrt(len(gains)) if len(gains) > 1 else 0.0
            found.append(
                {
                    "skew": skew,
                    "round": number + 1,
                    **{
                        name: round(mean(values.values()), 4)
                        for name, values in zip(PAIR, (whole, single), strict=True)
                    },
                    "gain_points": round(mean(gains), 2),
                    "gain_standard_error": round(error, 2),
                    "better": sum(gain > 0 for gain in gains),
                    "worse": sum(gain < 0 for gain in gains),
                    "pairs": len(gains),
                }
            )
    return found


def table(summary: Mapping[str, Any]) -> str:
    """Markdown, in percent; the gain with its standard error."""
    lines = [
        "| skew | round | feddtpt | best-client | gain, points | better | worse | of |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in summary["by_round"]:
        both = " | ".join(f"{100 * row[name]:.0f}" for name in PAIR)
        gain = f"{row['gain_points']:.0f} ± {row['gain_standard_error']:.0f}"
        lines.append(
            f"| {row['skew']} | {row['round']} | {both} | {gain} "
            f"| {row['better']} | {row['worse']} | {row['pairs']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)

"""When is one prompt of many better than the best of them: ``python -m experiments.prompts.many``.

Many clients that may ask little: each finds a part of what a good prompt must say, none the whole.
The run is the same but for the prompt that is made of all (``gain``) in one case, and not in the
other (``best-client``); the server's choice on validation examples is in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from math import sqrt
from statistics import mean
from typing import Annotated, Any

import typer

from experiments import harness
from experiments.federations import run_once
from experiments.prompts.run import SKEWS, Clients, PromptRun, Rounds, Task, shared_keys
from fedfuse.config.run_config import Scalar
from fedfuse.report.feddtpt import global_lines

PAIR = ("feddtpt", "best-client")


def measure(cell: PromptRun, shared: Mapping[str, Scalar], clients: int) -> list[dict[str, Any]]:
    """One run: accuracies in [0, 1] on the test set after each round."""
    run = run_once({**shared, **cell.keys(clients), "baselines": False}, clients)
    manual, *after = global_lines(run)
    found = {
        "variant": cell.variant,
        "skew": cell.skew,
        "seed": cell.seed,
        "manual": round(manual.test or 0.0, 4),
        "accuracy": [round(line.test or 0.0, 4) for line in after],
        "chosen": [made.chosen for made in run.aggregations],
        "prompt": after[-1].text,
    }
    return [found]


def summarize(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The gain after the last round, over both skews, and everything by skew and round.

    Accuracies are means over seeds, the gain is the mean of the differences within a seed.
    """
    rows = []
    for skew, mine in (harness.grouped(cells, "skew") | {"both": cells}).items():
        variants = harness.grouped(mine, "variant")
        for number in range(len(mine[0]["accuracy"])):
            whole, single = (
                {(c["skew"], c["seed"]): c["accuracy"][number] for c in variants[name]}
                for name in PAIR
            )
            gains = [100 * (whole[pair] - single[pair]) for pair in whole]
            rows.append(
                {
                    "skew": skew,
                    "round": number + 1,
                    PAIR[0]: round(mean(whole.values()), 4),
                    PAIR[1]: round(mean(single.values()), 4),
                    "gain_points": round(mean(gains), 2),
                    "gain_standard_error": round(harness.spread(gains) / sqrt(len(gains)), 2),
                    "better": sum(gain > 0 for gain in gains),
                    "worse": sum(gain < 0 for gain in gains),
                    "pairs": len(gains),
                }
            )
    last = {name: rows[-1][name] for name in ("gain_points", "gain_standard_error")}
    return {**last, "by_round": rows}


def table(summary: Mapping[str, Any]) -> str:
    """Markdown, in percent; the gain with its standard error."""
    rows = []
    for row in summary["by_round"]:
        both = (f"{100 * row[name]:.0f}" for name in PAIR)
        gain = f"{row['gain_points']:.0f} ± {row['gain_standard_error']:.0f}"
        counts = (str(row[name]) for name in ("better", "worse", "pairs"))
        rows.append((row["skew"], str(row["round"]), *both, gain, *counts))
    return harness.markdown(("skew", "round", *PAIR, "gain, points", "better", "worse", "of"), rows)


@harness.experiment("many.json", "prompts.md", {"many": table})
def main(
    seeds: harness.Seeds = "0,1,2,3,4,5,6,7",
    clients: Clients = 30,
    queries: Annotated[int, typer.Option(min=1, help="Queries of a client in a round.")] = 64,
    task: Task = "goods-word",
    rounds: Rounds = 3,
    output: harness.Output = harness.RUNS,
) -> harness.Study:
    """Run all cells; write the results, and unless they go elsewhere the table in docs/."""
    folder = f"prompts-many-{task}-{clients}-{rounds}"
    shared = shared_keys(output, folder, task, rounds)
    plan = product(harness.numbers(seeds), SKEWS, PAIR)
    runs = [PromptRun(name, skew, queries, seed) for seed, skew, name in plan]
    return harness.Study(
        cells={run: partial(measure, run, shared, clients) for run in runs},
        folder=folder,
        summarize=summarize,
    )

"""FedDTPT on real data: ``python -m experiments.prompts.realdata --material FOLDER``.

SST-2, TREC, RTE and ARC (easy), ten clients, private labels dealt evenly or by a Dirichlet
distribution of concentration 0.1. Models are trained on the spot and saved as ordinary Hugging Face
folders: one that follows instructions about these texts, the black box; one of another architecture
that no prompt is tuned on; and a masked one. The run loads them, and each data set, from folders,
as it would load anybody's.

Beside the federation: the vague prompt that it starts from, search alone, one centralized search, a
prompt written by hand, always the most frequent label, and a plain classifier (TF-IDF of words and
pairs, logistic regression) trained on the texts that the language models were trained on. All of
them on the same test examples, which nobody was trained on; see ``realtasks`` for who sees what.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
from rich.progress import track
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from experiments.frame import put_table, write_results
from experiments.prompts import realmodels
from experiments.prompts.realmodels import built
from experiments.prompts.realtasks import DATA_SETS, VAGUE, DataSet, exercises, hold_out
from experiments.prompts.run import DOCS, HERE, SKEWS, accuracy_of, run_once
from experiments.prompts.summary import points, spread
from fedfuse.config.run_config import Scalar, parse
from fedfuse.errors import FedfuseError
from fedfuse.factory.feddtpt import load_task
from fedfuse.feddtpt.label_tasks import Example
from fedfuse.feddtpt.local_black_box import LocalModel
from fedfuse.models.causal_lm import load_causal_lm
from fedfuse.report.feddtpt import at_the_end, bytes_per_client_round, global_lines
from fedfuse.tracking.run import RunFolder

# Exercises of each kind that the models are trained on, and each data set's share of them.
DRILLS, EXERCISES = 20_000, 100_000
SHARES = {"sst2": 4.0, "trec": 3.0, "rte": 1.5, "arc_easy": 1.5}
# Tokens of the longest label and of the end of an answer.
ANSWER_TOKENS = 6
COLUMNS = (
    *("frequent", "manual", "standalone", "accuracy", "centralized", "by_hand", "classifier"),
    *("second_manual", "second"),
)
HEADS = (
    *("most frequent label", "vague", "search alone", "federation", "centralized", "by hand"),
    *("classifier", "second model: vague", "federation"),
)


@dataclass(frozen=True, slots=True)
class Models:
    """What was trained: folders."""

    answers: Path
    second: Path
    proposes: Path


def main(
    material: Annotated[Path, typer.Option(help="Folder that holds datasets/NAME.")],
    seeds: Annotated[str, typer.Option(help="Seeds, joined by commas.")] = "0",
    tasks: Annotated[str, typer.Option(help="Data sets, joined by commas.")] = ",".join(SHARES),
    queries: Annotated[int, typer.Option(help="Of a client in a round.")] = 128,
    clients: Annotated[int, typer.Option(min=2, help="Their number.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Of each run.")] = 3,
    output: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs"),
    results: Annotated[Path, typer.Option(help="File to write.")] = HERE / "realdata.json",
) -> None:
    """Train the models, run all cells; write results, and from the default place the table.

    Models and runs that are there are not made again, so seeds can be added.
    """
    started = time.monotonic()
    numbers, names = [int(seed) for seed in seeds.split(",")], tasks.split(",")
    if unknown := set(names) - SHARES.keys():
        raise FedfuseError(f"tasks {', '.join(sorted(unknown))}; allowed: {', '.join(SHARES)}")
    folder = output.resolve() / "experiment-prompts-realdata"
    models, known = prepare(material, folder / "data")
    shared: dict[str, Scalar] = {
        "strategy": "feddtpt",
        "rounds": rounds,
        "output": str(folder / f"{models.answers.name}-{clients}-{rounds}-{queries}"),
        "prompts.queries": queries,
        "prompts.start": VAGUE,
        "prompts.masked-lm": str(models.proposes),
        "black-box.model": str(models.answers),
        "black-box.max-tokens": ANSWER_TOKENS,
        "server.device": "cpu",
        "clients.device": "cpu",
    }
    chosen = [data for data in DATA_SETS if data.folder in names]
    plan = [(seed, data, skew) for seed in numbers for data in chosen for skew in SKEWS]
    cells = []
    for seed, data, skew in track(plan, "runs"):
        keys: dict[str, Scalar] = {
            **shared,
            "name": f"{data.folder}-{skew}-{seed}",
            "seed": seed,
            "prompts.task": str(folder / "data" / data.folder),
            "prompts.alpha": SKEWS[skew],
            "data.template": data.template,
        }
        cell = measure(run_once(keys, clients), data, known[data.folder], models)
        cells.append({"task": data.folder, "skew": skew, "seed": seed, **cell})
    summary = summarize(cells)
    write_results(
        results,
        command="python -m experiments.prompts.realdata --material MATERIAL "
        f"--seeds {seeds} --tasks {tasks} --queries {queries} --clients {clients} "
        f"--rounds {rounds}",
        started=started,
        summary=summary,
        cells=cells,
        seeds=numbers,
    )
    if results == HERE / "realdata.json":
        put_table(DOCS / "prompts.md", table(summary), "realdata")


def prepare(material: Path, folder: Path) -> tuple[Models, dict[str, Sequence[Example]]]:
    """Folders of the models, trained unless cached, and of the data sets that they know.

    Args:
        material: with the data sets.
        folder: where each one's part for the federation is written.

    Returns:
        The models, and by data set the examples that they were trained on.
    """
    known = []
    for data in DATA_SETS:
        task, examples = hold_out(data, material, folder / data.folder)
        known.append((data, task, examples))
    shares = [SHARES[data.folder] for data in DATA_SETS]
    drills = exercises(known, shares, DRILLS, drill=True, seed=0)
    whole = exercises(known, shares, EXERCISES, drill=False, seed=1)
    recipes = realmodels.PROPOSES, realmodels.ANSWERS, realmodels.SECOND
    proposes, answers, second = (built(recipe, drills, whole) for recipe in recipes)
    return Models(answers, second, proposes), {data.folder: found for data, _, found in known}


def measure(
    run: RunFolder, data: DataSet, known: Sequence[Example], models: Models
) -> dict[str, Any]:
    """What is kept of a run: accuracies in [0, 1] on the test set, queries, bytes, prompts."""
    manual, *rounds = global_lines(run)
    ends = {stage: at_the_end(run, stage) for stage in ("federated", "standalone", "centralized")}
    answers, second = (
        LocalModel(load_causal_lm(str(folder), device="cpu"), ANSWER_TOKENS, 120)
        for folder in (models.answers, models.second)
    )
    return {
        **references(run, known),
        "manual": manual.test,
        "rounds": [{"queries": line.queries, "accuracy": line.test} for line in rounds],
        "prompt": rounds[-1].text,
        "accuracy": rounds[-1].test,
        "queries": rounds[-1].queries,
        "own": [line.test for line in ends["federated"]],
        "standalone": mean(line.test or 0.0 for line in ends["standalone"]),
        "centralized": mean(line.test or 0.0 for line in ends["centralized"]),
        "by_hand": accuracy_of(run, data.good, answers),
        "second_manual": accuracy_of(run, manual.text, second),
        "second": accuracy_of(run, rounds[-1].text, second),
        "second_by_hand": accuracy_of(run, data.good, second),
        "bytes_per_client_round": bytes_per_client_round(run),
    }


def references(run: RunFolder, known: Sequence[Example]) -> dict[str, float]:
    """Accuracies without any language model: of the most frequent label, and of a classifier."""
    config = parse(run.config)
    _, splits = load_task(config.prompts, config.data.template, config.seed, 1)
    labels = [example.label for example in splits.test]
    frequent = Counter(example.label for example in known).most_common(1)[0][0]
    classifier = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=10.0, max_iter=1000),
    )
    classifier.fit([e.text for e in known], [e.label for e in known])
    accuracy = classifier.score([example.text for example in splits.test], labels)
    return {"frequent": labels.count(frequent) / len(labels), "classifier": float(accuracy)}


def summarize(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """``[task][skew]``: accuracies, mean over seeds, and gains in points (hundredths)."""
    found: dict[str, Any] = {}
    for task, skew in dict.fromkeys((cell["task"], cell["skew"]) for cell in cells):
        rows = [cell for cell in cells if (cell["task"], cell["skew"]) == (task, skew)]
        gains = {
            "gain_over_vague": [c["accuracy"] - c["manual"] for c in rows],
            "gain_over_local": [c["accuracy"] - c["standalone"] for c in rows],
            "gap_to_centralized": [c["centralized"] - c["accuracy"] for c in rows],
            "gap_to_hand": [c["by_hand"] - c["accuracy"] for c in rows],
            "transfer_gain": [c["second"] - c["second_manual"] for c in rows],
        }
        found.setdefault(task, {})[skew] = {
            **{name: round(mean(row[name] for row in rows), 4) for name in COLUMNS},
            "accuracy_std": round(spread([row["accuracy"] for row in rows]) / 100, 4),
            **{f"{name}_points": points(shares) for name, shares in gains.items()},
            "queries": round(mean(row["queries"] for row in rows)),
            "bytes_per_client_round": round(mean(row["bytes_per_client_round"] for row in rows)),
        }
    return found


def table(summary: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Markdown, in percent; the federation's ± the deviation between several seeds."""
    lines = [f"| task, skew | {' | '.join(HEADS)} |", "|---|" + "---:|" * len(HEADS)]
    for task, skews in summary.items():
        for skew, row in skews.items():
            values = [f"{100 * row[name]:.0f}" for name in COLUMNS]
            if row["accuracy_std"]:
                values[COLUMNS.index("accuracy")] += f" ± {100 * row['accuracy_std']:.0f}"
            lines.append(f"| {task}, {skew} | {' | '.join(values)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)

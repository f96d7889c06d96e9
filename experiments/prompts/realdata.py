"""FedDTPT on real data: ``python -m experiments.prompts.realdata --material FOLDER``.

SST-2, TREC, RTE and ARC (easy), ten clients, private labels dealt evenly or by a Dirichlet
distribution of concentration 0.1. Models are trained on the spot; the run loads them, and each data
set, from folders, as it would load anybody's.

Beside the federation, on the same test examples, which nobody was trained on: the vague prompt that
it starts from, search alone, one centralized search, a prompt written by hand, the most frequent
label, and a plain classifier, which sees the texts that the language models were trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from experiments import harness
from experiments.federations import run_once
from experiments.prompts import realmodels
from experiments.prompts.realtasks import DATA_SETS, VAGUE, DataSet, exercises, hold_out
from experiments.prompts.run import SKEWS, Clients, Rounds, accuracies, accuracy_of
from experiments.prompts.summary import points, points_std
from fedfuse.config.run_config import Scalar, parse
from fedfuse.errors import FedfuseError
from fedfuse.factory.feddtpt import load_task
from fedfuse.feddtpt.label_tasks import LabelledExample
from fedfuse.feddtpt.local_black_box import LocalBlackBox
from fedfuse.models.causal_lm import load_causal_lm
from fedfuse.report.feddtpt import bytes_per_client_round, global_lines
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


# Differences of two columns, in points.
GAINS = {
    "gain_over_vague": ("accuracy", "manual"),
    "gain_over_local": ("accuracy", "standalone"),
    "gap_to_centralized": ("centralized", "accuracy"),
    "gap_to_hand": ("by_hand", "accuracy"),
    "transfer_gain": ("second", "second_manual"),
}


def prepare(
    material: Path, folder: Path
) -> tuple[dict[str, Path], dict[str, list[LabelledExample]]]:
    """Folders of the models, and by data set the examples that they were trained on.

    They are trained unless cached; each data set's part for the federation goes into ``folder``.
    """
    known = [(data, *hold_out(data, material, folder / data.folder)) for data in DATA_SETS]
    shares = [SHARES[data.folder] for data in DATA_SETS]
    drills = exercises(known, shares, DRILLS, drill=True, seed=0)
    whole = exercises(known, shares, EXERCISES, drill=False, seed=1)
    recipes = realmodels.RECIPES
    models = {name: realmodels.built(recipe, drills, whole) for name, recipe in recipes.items()}
    return models, {data.folder: found for data, _, found in known}


def measure(
    run: RunFolder, data: DataSet, known: Sequence[LabelledExample], models: Mapping[str, Path]
) -> dict[str, Any]:
    """What is kept of a run: accuracies in [0, 1] on the test set, queries, bytes, prompts."""
    found, vague = accuracies(run), global_lines(run)[0].text
    answers, second = (
        LocalBlackBox(load_causal_lm(str(models[name]), device="cpu"), ANSWER_TOKENS, 120)
        for name in ("answers", "second")
    )
    return {
        **references(run, known),
        **found,
        "standalone": mean(found["standalone"]),
        "centralized": mean(found["centralized"]),
        "by_hand": accuracy_of(run, data.good, answers),
        "second_manual": accuracy_of(run, vague, second),
        "second": accuracy_of(run, found["prompt"], second),
        "second_by_hand": accuracy_of(run, data.good, second),
        "bytes_per_client_round": bytes_per_client_round(run),
    }


def references(run: RunFolder, known: Sequence[LabelledExample]) -> dict[str, float]:
    """Accuracies without any language model: of the most frequent label, and of a classifier."""
    config = parse(run.config)
    _, splits = load_task(config.feddtpt, config.data.template, config.seed, 1)
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
    for (task, skew), rows in harness.grouped(cells, "task", "skew").items():
        found.setdefault(task, {})[skew] = {
            **{name: harness.mean_of(rows, name) for name in COLUMNS},
            "accuracy_std": round(points_std([row["accuracy"] for row in rows]) / 100, 4),
            **{f"{n}_points": points([c[a] - c[b] for c in rows]) for n, (a, b) in GAINS.items()},
            "queries": harness.mean_of(rows, "queries", None),
            "bytes_per_client_round": harness.mean_of(rows, "bytes_per_client_round", None),
        }
    return found


def table(summary: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Markdown, in percent; the federation's ± the deviation between several seeds."""
    rows = []
    for task, skews in summary.items():
        for skew, row in skews.items():
            values = [f"{100 * row[name]:.0f}" for name in COLUMNS]
            if row["accuracy_std"]:
                values[COLUMNS.index("accuracy")] += f" ± {100 * row['accuracy_std']:.0f}"
            rows.append((f"{task}, {skew}", *values))
    return harness.markdown(("task, skew", *HEADS), rows)


@harness.experiment("realdata.json", "prompts.md", {"realdata": table})
def main(
    material: harness.Material,
    seeds: harness.Seeds = "0",
    tasks: Annotated[str, typer.Option(help="Data sets, joined by commas.")] = ",".join(SHARES),
    queries: Annotated[int, typer.Option(help="Queries of a client in a round.")] = 128,
    clients: Clients = 10,
    rounds: Rounds = 3,
    output: harness.Output = harness.RUNS,
) -> harness.Study:
    """Train the models, run all cells; write results, and unless they go elsewhere the table.

    Models and runs that are there are not made again, so seeds can be added.
    """
    names = tasks.split(",")
    if unknown := set(names) - SHARES.keys():
        wrong = ", ".join(sorted(unknown))
        raise FedfuseError(f"expected tasks of {', '.join(SHARES)}, got {wrong}")
    home = output.resolve() / "experiment-prompts-realdata"
    models, known = prepare(material, home / "data")
    folder = f"prompts-realdata/{models['answers'].name}-{clients}-{rounds}-{queries}"

    def run_cell(data: DataSet, skew: str, seed: int) -> list[dict[str, Any]]:
        keys: dict[str, Scalar] = {
            "strategy": "feddtpt",
            "rounds": rounds,
            "output": str(output.resolve() / f"experiment-{folder}"),
            "name": f"{data.folder}-{skew}-{seed}",
            "seed": seed,
            "data.template": data.template,
            "feddtpt.task": str(home / "data" / data.folder),
            "feddtpt.alpha": SKEWS[skew],
            "feddtpt.search.queries": queries,
            "feddtpt.start": VAGUE,
            "feddtpt.masked-lm": str(models["proposes"]),
            "black-box.model": str(models["answers"]),
            "black-box.max-tokens": ANSWER_TOKENS,
            "server.device": "cpu",
            "clients.device": "cpu",
        }
        found = measure(run_once(keys, clients), data, known[data.folder], models)
        return [{"task": data.folder, "skew": skew, "seed": seed, **found}]

    return harness.Study(
        cells={
            (data.folder, skew, seed): partial(run_cell, data, skew, seed)
            for seed, data, skew in product(harness.numbers(seeds), DATA_SETS, SKEWS)
            if data.folder in names
        },
        folder=folder,
        summarize=summarize,
    )

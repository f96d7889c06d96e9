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

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from experiments.prompts.realmodels import built
from experiments.prompts.realtasks import DATA_SETS, VAGUE, DataSet, exercises, hold_out
from experiments.prompts.run import SKEWS, Clients, Rounds, accuracy_of
from experiments.prompts.summary import points, points_std
from fedfuse.config.run_config import Scalar, parse
from fedfuse.errors import FedfuseError
from fedfuse.factory.feddtpt import load_task
from fedfuse.feddtpt.label_tasks import LabelledExample
from fedfuse.feddtpt.local_black_box import LocalBlackBox
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


def prepare(material: Path, folder: Path) -> tuple[Models, dict[str, Sequence[LabelledExample]]]:
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
    run: RunFolder, data: DataSet, known: Sequence[LabelledExample], models: Models
) -> dict[str, Any]:
    """What is kept of a run: accuracies in [0, 1] on the test set, queries, bytes, prompts."""
    manual, *rounds = global_lines(run)
    ends = {stage: at_the_end(run, stage) for stage in ("federated", "standalone", "centralized")}
    answers, second = (
        LocalBlackBox(load_causal_lm(str(folder), device="cpu"), ANSWER_TOKENS, 120)
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
            "accuracy_std": round(points_std([row["accuracy"] for row in rows]) / 100, 4),
            **{f"{name}_points": points(shares) for name, shares in gains.items()},
            "queries": round(mean(row["queries"] for row in rows)),
            "bytes_per_client_round": round(mean(row["bytes_per_client_round"] for row in rows)),
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
    results: harness.Results = None,
) -> harness.Study:
    """Train the models, run all cells; write results, and unless they go elsewhere the table.

    Models and runs that are there are not made again, so seeds can be added.
    """
    names = tasks.split(",")
    if unknown := set(names) - SHARES.keys():
        raise FedfuseError(
            f"expected tasks of {', '.join(SHARES)}, got {', '.join(sorted(unknown))}"
        )
    home = output.resolve() / "experiment-prompts-realdata"
    models, known = prepare(material, home / "data")
    folder = f"prompts-realdata/{models.answers.name}-{clients}-{rounds}-{queries}"
    shared: dict[str, Scalar] = {
        "strategy": "feddtpt",
        "rounds": rounds,
        "output": str(output.resolve() / f"experiment-{folder}"),
        "feddtpt.search.queries": queries,
        "feddtpt.start": VAGUE,
        "feddtpt.masked-lm": str(models.proposes),
        "black-box.model": str(models.answers),
        "black-box.max-tokens": ANSWER_TOKENS,
        "server.device": "cpu",
        "clients.device": "cpu",
    }

    def run_cell(data: DataSet, skew: str, seed: int) -> list[dict[str, Any]]:
        keys: dict[str, Scalar] = {
            **shared,
            "name": f"{data.folder}-{skew}-{seed}",
            "seed": seed,
            "feddtpt.task": str(home / "data" / data.folder),
            "feddtpt.alpha": SKEWS[skew],
            "data.template": data.template,
        }
        found = measure(run_once(keys, clients), data, known[data.folder], models)
        return [{"task": data.folder, "skew": skew, "seed": seed, **found}]

    return harness.Study(
        cells={
            (data.folder, skew, seed): partial(run_cell, data, skew, seed)
            for seed in harness.numbers(seeds)
            for data in DATA_SETS
            for skew in SKEWS
            if data.folder in names
        },
        folder=folder,
        summarize=summarize,
    )

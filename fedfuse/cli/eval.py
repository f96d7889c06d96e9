"""The command ``fedfuse eval``: a finished run's model, scored with confidence intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedfuse.errors import check

if TYPE_CHECKING:
    from rich.table import Table

    from fedfuse.data.sample import Sample
    from fedfuse.models.causal_lm import CausalLM
    from fedfuse.tracking.run import RunFolder


def evaluate(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    model: Annotated[
        str, typer.Option(help="Whose model: server, or a client's number or name.")
    ] = "server",
    data: Annotated[
        str, typer.Option(help="Data to score it on; by default the run's test set and questions.")
    ] = "",
    premise: Annotated[
        str, typer.Option(help="Prompt in a question's place, for calibrated accuracy.")
    ] = "",
    tasks: Annotated[
        str, typer.Option(help="Tasks of lm-evaluation-harness instead: NAME[,NAME].")
    ] = "",
    include_path: Annotated[
        Path | None, typer.Option(help="Folder with YAML files of further tasks.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(help="Examples before a task's question.", min=0)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Questions of each task, at most.", min=1)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Texts at once, of tasks.", min=1)] = 8,
    write_task: Annotated[
        Path | None, typer.Option(help="Folder for the questions as tasks of the harness.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all that is drawn.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="Device; by default the run's.")] = "",
) -> None:
    """Score a model that a run left, with the adapter that it learned.

    Loss, accuracies and calibration, each with its 95 % interval, go to RUN/eval.
    """
    from fedfuse.evaluation.harness import load_tasks
    from fedfuse.tracking.run import read_run
    from fedfuse.tracking.saved_model import find_adapter, find_model, load_saved_model

    check("--include-path", "no --tasks", "--tasks too", tasks or include_path is None)
    run = read_run(folder)
    found = find_model(run, model)
    find_adapter(run, found)  # before long work
    if tasks:
        check("--tasks", "--data or --write-task too", "them alone", not (data or write_task))
        names = [name.strip() for name in tasks.split(",") if name.strip()]
        loaded = load_tasks(names, include_path)
        lm = load_saved_model(run, found, device=device)
        options = {"shots": shots, "limit": limit, "batch_size": batch_size, "seed": seed}
        _run_tasks(run, found, lm, names, loaded, options)
        return
    test, questions = _samples(run, data)
    if write_task:
        _write_task(questions, write_task, data or str(run.config.get("data.source")))
    lm = load_saved_model(run, found, device=device)
    _score(run, found, lm, test, questions, data=data, premise=premise, seed=seed)


def _run_tasks(
    run: RunFolder,
    model: str,
    lm: CausalLM,
    names: list[str],
    tasks: list[Any],
    options: dict[str, Any],
) -> None:
    """Score on tasks of the harness, print the table, write the JSON."""
    from fedfuse.evaluation.harness import run_tasks
    from fedfuse.report.evaluation import tasks_table

    scores, about = run_tasks(lm, tasks, **options)
    _print(f"{run.title}: {run.name(model)} on {', '.join(names)}", tasks_table(scores))
    found: dict[str, Any] = {}
    for score in scores:
        values = {"value": score.value, "stderr": score.stderr}
        found.setdefault(score.task, {})[score.metric] = values
    ending = "-tasks-" + "+".join(name.replace("/", "_") for name in names)
    _write(run, model, ending, options | about | {"tasks": found})


def _write_task(questions: list[Sample], folder: Path, data: str) -> None:
    """Write questions as tasks of the harness, and say how they are asked."""
    from fedfuse.evaluation.harness_task import write_task

    tag = write_task(questions, folder, _data_name(data))
    print(f"written: {folder}; to ask them: --tasks {tag} --include-path {folder}", flush=True)


def _samples(run: RunFolder, data: str) -> tuple[list[Sample], list[Sample]]:
    """Test set and questions: the run's, or all of other data."""
    from fedfuse.config.run_config import parse
    from fedfuse.data.splits import scored_data
    from fedfuse.tracking.saved_model import scored_samples

    if not data:
        shared = scored_samples(run)
        return list(shared.test), list(shared.questions)
    samples = scored_data(data, parse(run.config).data.template)
    return samples, [sample for sample in samples if sample.options]


def _score(
    run: RunFolder,
    model: str,
    lm: CausalLM,
    test: list[Sample],
    questions: list[Sample],
    *,
    data: str,
    premise: str,
    seed: int,
) -> None:
    """Score on test set and questions, print the tables, write the JSON."""
    from functools import partial

    from fedfuse.config.run_config import parse
    from fedfuse.data.sample import whole_fingerprint
    from fedfuse.evaluation import measures
    from fedfuse.evaluation.losses import sample_nll
    from fedfuse.evaluation.scoring import Evaluator
    from fedfuse.report.evaluation import domains_table, measures_table, to_json

    max_length = parse(run.config).data.max_length
    evaluator = Evaluator(lm.tokenizer, test, questions, max_length)
    found = measures.evaluate(evaluator, partial(sample_nll, lm), premise=premise, seed=seed)
    about = {
        "data": data or run.config.get("data.source"),
        "samples": whole_fingerprint(test),
        "questions": whole_fingerprint(questions),
        "premise": premise,
        "seed": seed,
    }
    tables = [measures_table(found)]
    if len(found.domains) > 1:
        tables.append(domains_table(found))
    note = ""
    if not data and (last := run.overall(model, "federated")):
        accuracy = "" if last.accuracy is None else f", accuracy {last.accuracy:.1%}"
        note = f"the run itself, after round {last.round}: loss {last.loss:.4f}{accuracy}"
    _print(f"{run.title}: {run.name(model)} on {about['data']}", *tables, note=note)
    ending = f"-{_data_name(data)}" if data else ""
    _write(run, model, ending, about | to_json(found))


def _print(title: str, *tables: Table, note: str = "") -> None:
    """Print tables under a title; where the output is no terminal it is 100 columns wide."""
    from rich.console import Console
    from rich.text import Text

    from fedfuse.report.table import WIDTH

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(Text(title, "bold"))
    for table in tables:
        console.print(table)
    if note:
        console.print(Text(note, "dim"))


def _data_name(data: str) -> str:
    """Name of data, for files and tasks."""
    from fedfuse.data.records import source_name

    return "+".join(source_name(part.strip()) for part in data.split("+"))


def _write(run: RunFolder, model: str, ending: str, content: dict[str, Any]) -> None:
    """Write an evaluation into the run folder, and say where it is."""
    from fedfuse.evaluation.intervals import LEVEL
    from fedfuse.files import atomic_write
    from fedfuse.tracking.run_writer import commit, versions

    about = {
        "model": model,
        "name": run.name(model),
        "base": run.models[model],
        "level": LEVEL,
        "commit": commit(),
        "versions": versions(),
    }
    file = run.folder / "eval" / f"{model}{ending}.json"
    with atomic_write(file) as scratch:
        scratch.write_text(json.dumps(about | content, indent=1) + "\n", encoding="utf-8")
    print(f"written: {file}", flush=True)

"""The command ``fedfuse eval``: a finished run's model, scored with confidence intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
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
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="Device; by default the run's.")] = "",
) -> None:
    """Score a model that a run left, with the adapter that it learned.

    Loss, accuracies, calibration, each with its 95 % interval, go to RUN/eval.
    """
    from fedfuse.tracking.run import read_run
    from fedfuse.tracking.saved_model import find_model, load_saved_model

    run = read_run(folder)
    found = find_model(run, model)
    test, questions = _samples(run, data)
    lm = load_saved_model(run, found, device=device)
    _score(run, found, lm, test, questions, data=data, premise=premise, seed=seed)


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

    from rich.console import Console
    from rich.text import Text

    from fedfuse.config.run_config import parse
    from fedfuse.data.sample import whole_fingerprint
    from fedfuse.evaluation import measures
    from fedfuse.evaluation.losses import sample_nll
    from fedfuse.evaluation.scoring import Evaluator
    from fedfuse.report.evaluation import domains_table, measures_table, to_json
    from fedfuse.report.table import WIDTH

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
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(Text(f"{run.title}: {run.name(model)} on {about['data']}", "bold"))
    console.print(measures_table(found))
    if len(found.domains) > 1:
        console.print(domains_table(found))
    if not data and (last := run.overall(model, "federated")):
        accuracy = "" if last.accuracy is None else f", accuracy {last.accuracy:.1%}"
        shown = f"the run itself, after round {last.round}: loss {last.loss:.4f}{accuracy}"
        console.print(Text(shown, "dim"))
    _write(run, model, _data_name(data), about | to_json(found))


def _data_name(data: str) -> str:
    """Ending of a file's name that tells the data."""
    from fedfuse.data.records import source_name

    return "-" + "+".join(source_name(part.strip()) for part in data.split("+")) if data else ""


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

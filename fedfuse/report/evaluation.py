"""An evaluation as a table for the terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from fedfuse.evaluation.harness import TaskScore
from fedfuse.evaluation.intervals import LEVEL, Estimate
from fedfuse.evaluation.measures import Evaluation, Measures
from fedfuse.report.formatting import shorten

NAME_WIDTH = 22
# Measures by their names in JSON, with their names and units for readers.
TITLES = {
    "loss": "loss, nats/byte",
    "bits_per_byte": "bits per byte",
    "accuracy": "accuracy",
    "normalized_accuracy": "accuracy per byte",
    "calibrated_accuracy": "accuracy, calibrated",
    "calibration_error": "calibration error",
    "brier": "Brier score",
}
SHARES = ("accuracy", "normalized_accuracy", "calibrated_accuracy", "calibration_error")


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation's measures, each with value, low and high, of all domains and by domain."""
    return {
        "overall": _to_json(evaluation.overall),
        "domains": {name: _to_json(found) for name, found in evaluation.domains.items()},
    }


def _to_json(measures: Measures) -> dict[str, Any]:
    found: dict[str, Any] = {"samples": measures.samples}
    found |= {name: asdict(value) for name, value in estimates(measures).items()}
    return found | ({"questions": measures.answers.questions} if measures.answers else {})


def estimates(measures: Measures) -> dict[str, Estimate]:
    """All measures that there are, by the names of ``TITLES``."""
    found = {"loss": measures.loss, "bits_per_byte": measures.bits_per_byte}
    asked = measures.answers
    return found | ({n: getattr(asked, n) for n in TITLES if n not in found} if asked else {})


def measures_table(evaluation: Evaluation) -> Table:
    """All measures over all domains, each with its interval."""
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("all domains")
    for name in ("value", f"{LEVEL:.0%} interval", "of"):
        table.add_column(name, justify="right", no_wrap=True)
    measures = evaluation.overall
    questions = f"{measures.answers.questions:,} questions" if measures.answers else ""
    for name, found in estimates(measures).items():
        of = f"{measures.samples:,} samples" if name in ("loss", "bits_per_byte") else questions
        table.add_row(TITLES[name], *_texts(name, found), of)
    return table


def domains_table(evaluation: Evaluation) -> Table:
    """Loss and accuracy by domain, each with its interval."""
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("domain", overflow="fold", min_width=8, max_width=NAME_WIDTH)
    columns = ("loss", "accuracy") if evaluation.overall.answers else ("loss",)
    for name in columns:
        table.add_column(TITLES[name], justify="right", no_wrap=True)
        table.add_column(f"{LEVEL:.0%} interval", justify="right", no_wrap=True)
    for domain, measures in evaluation.domains.items():
        found = estimates(measures)
        cells = [
            text for n in columns for text in (_texts(n, found[n]) if n in found else ("", ""))
        ]
        table.add_row(Text(shorten(domain, NAME_WIDTH)), *cells)
    return table


def tasks_table(scores: Sequence[TaskScore]) -> Table:
    """Each metric of each task, with its standard error."""
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("task", overflow="fold", min_width=8)
    table.add_column("metric")
    for name in ("value", "standard error"):
        table.add_column(name, justify="right", no_wrap=True)
    for score in scores:
        stderr = "" if score.stderr is None else f"{score.stderr:.4f}"
        table.add_row(Text(score.task), Text(score.metric), f"{score.value:.4f}", stderr)
    return table


def _texts(name: str, found: Estimate) -> tuple[str, str]:
    """Value and interval as a reader sees them: shares in percent."""
    if name in SHARES:
        return f"{found.value:.1%}", f"{100 * found.low:.1f} to {100 * found.high:.1f}"
    return f"{found.value:.4f}", f"{found.low:.4f} to {found.high:.4f}"

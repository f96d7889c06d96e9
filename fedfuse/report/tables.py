"""Rows of a report's tables as text, for the page and the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import NamedTuple

from fedfuse.algorithms.effort import Effort
from fedfuse.report.formatting import bytes_text, change_text, loss_text, percent, seconds_text
from fedfuse.tracking.records import STAGES, MessageLine
from fedfuse.tracking.run import SERVER, Measure, RunFolder

# Text of an error that a table shows; the whole of it is in messages.jsonl.
ERROR_LENGTH = 400


@dataclass(frozen=True, slots=True)
class Cell:
    """One measure: loss and excess in nats/byte, accuracy; ``trend`` is "better", "worse", ""."""

    loss: str = ""
    excess: str = ""
    accuracy: str = ""
    trend: str = ""


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One model: a cell per stage of the run, and what federation changed."""

    name: str
    cells: tuple[Cell, ...]
    gain: str
    trend: str


def cell(measure: Measure | None, trend: str = "") -> Cell:
    """A measure as text; empty where there is none."""
    if measure is None:
        return Cell()
    excess = change_text(measure.excess) if math.isfinite(measure.loss) else ""
    return Cell(loss_text(measure.loss), excess, percent(measure.accuracy), trend)


def result_rows(run: RunFolder) -> list[ResultRow]:
    """All-domain means of every model that was measured, in every stage of the run."""
    rows = []
    for model in run.measured:
        better = trend(run.change(model))
        cells = tuple(
            cell(run.overall(model, stage), better if stage == "federated" else "")
            for stage in run.stages
        )
        rows.append(ResultRow(run.name(model), cells, gain(run, model), better))
    return rows


def gain_title(run: RunFolder) -> str:
    """Heading of the column that ``gain`` fills, "" where no model has a gain."""
    if not any(gain(run, model) for model in run.measured):
        return ""
    return "excess removed" if run.has_floor else "change"


def gain(run: RunFolder, model: str) -> str:
    """Share of the excess that federation removed; without a floor the change of the loss."""
    return percent(run.share_removed(model)) if run.has_floor else change_text(run.change(model))


def trend(change: float | None) -> str:
    """Whether a change of a loss is for the better, as far as its three digits show."""
    if change is None or loss_text(change) == loss_text(0.0):
        return ""
    return "better" if change < 0 else "worse"


def gain_note(run: RunFolder) -> str:
    """Footnote of the column of ``gain``: the stages that it compares."""
    models = [model for model in run.measured if run.before_after(model) is not None]
    parts = ["zero-shot (server)"] if SERVER in models else []
    parts += ["standalone (clients)"] if any(model != SERVER for model in models) else []
    return f"{gain_title(run)}: federated against {' and '.join(parts)}" if parts else ""


@dataclass(frozen=True, slots=True)
class DomainRow:
    """One model on one domain: a cell per stage of the run."""

    name: str
    domain: str
    own: bool
    cells: tuple[Cell, ...]


def domain_rows(run: RunFolder) -> list[DomainRow]:
    """Every model on every domain, at each stage's last round."""
    rows = []
    for model in run.measured:
        stages = [run.by_domain(model, stage) for stage in run.stages]
        for domain in run.domains:
            cells = tuple(cell(measures.get(domain)) for measures in stages)
            own = run.own_domain.get(model) == domain
            rows.append(DomainRow(run.name(model), domain or "(no name)", own, cells))
    return rows


@dataclass(frozen=True, slots=True)
class CostRow:
    """Cost of a group of messages: bytes each way, seconds, number, number of failures."""

    name: str
    sent: str
    received: str
    seconds: str
    messages: int
    failures: int


def costs(run: RunFolder) -> list[tuple[str, list[CostRow]]]:
    """Rows by client (the server's own work is one), by phase and by round (0: registration)."""
    rank = {model: place for place, model in enumerate((SERVER, *run.clients))}
    by_client = sorted(run.messages, key=lambda line: rank.get(line.client, len(rank)))
    return [
        ("client", _grouped(by_client, lambda line: line.client, run.name)),
        ("phase", _grouped(run.messages, lambda line: line.phase)),
        ("round", _grouped(run.messages, lambda line: str(line.round))),
    ]


def cost_in_all(run: RunFolder) -> CostRow:
    """One row for the whole run."""
    return _cost("in all", run.messages)


def _grouped(
    messages: Iterable[MessageLine],
    key: Callable[[MessageLine], str],
    name: Callable[[str], str] = str,
) -> list[CostRow]:
    groups: dict[str, list[MessageLine]] = {}
    for line in messages:
        groups.setdefault(key(line), []).append(line)
    return [_cost(name(group), members) for group, members in groups.items()]


def _cost(name: str, items: Sequence[MessageLine]) -> CostRow:
    return CostRow(
        name,
        bytes_text(sum(item.sent_bytes for item in items)),
        bytes_text(sum(item.received_bytes for item in items)),
        seconds_text(sum(item.seconds for item in items)),
        len(items),
        sum(item.error is not None for item in items),
    )


class EffortRow(NamedTuple):
    """What training took a model in a stage, all rounds together."""

    name: str
    stage: str
    steps: str
    private: str
    public: str
    queries: str


def effort_rows(run: RunFolder) -> list[EffortRow]:
    """A row for each model and stage, the server first."""
    rank = {model: place for place, model in enumerate((SERVER, *run.clients))}
    totals: dict[tuple[str, str], Effort] = {}
    for line in sorted(run.training, key=lambda x: (rank[x.model], STAGES.index(x.stage))):
        effort = Effort(line.steps, line.private_samples, line.public_samples, line.queries)
        totals[line.model, line.stage] = totals.get((line.model, line.stage), Effort()) + effort
    return [
        EffortRow(run.name(model), stage, *(f"{value:,}" for value in astuple(effort)))
        for (model, stage), effort in totals.items()
    ]


class FailureRow(NamedTuple):
    """Failures with the same client, phase and error, and the rounds in which they came."""

    name: str
    phase: str
    rounds: str
    error: str


def failure_rows(run: RunFolder) -> list[FailureRow]:
    """Failed messages; those that differ only in their round are one row."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for item in run.failures:
        error = (item.error or "no reason given")[:ERROR_LENGTH]
        groups.setdefault((item.client, item.phase, error), []).append(item.round)
    return [
        FailureRow(run.name(client), phase, ", ".join(map(str, rounds)), error)
        for (client, phase, error), rounds in groups.items()
    ]


def late_models(run: RunFolder) -> list[str]:
    """A sentence per model whose last measure is older than the run's: its row is out of date."""
    sentences = []
    for model in run.measured:
        last = run.overall(model, "federated")
        if last is not None and last.round < run.rounds:
            sentences.append(
                f"{run.name(model)} was last measured after round {last.round} of {run.rounds}."
            )
    return sentences

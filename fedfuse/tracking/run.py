"""A run folder, read and typed, with the numbers that a report derives from it.

Two conventions hold everywhere. A model's all-domain value is the plain mean over domains, so that
every domain counts the same whatever its number of test samples. The *excess* of a loss is what
lies above the entropy floor, ``loss - floor`` in nats/byte: the part that learning can remove.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedfuse.errors import FedfuseError
from fedfuse.tracking.feddtpt_records import AggregationLine, PromptLine
from fedfuse.tracking.json_fields import Fields, clean, read_object
from fedfuse.tracking.line_files import LineReader
from fedfuse.tracking.records import (
    STAGES,
    AcceptanceLine,
    Event,
    GateLoss,
    MessageLine,
    Metric,
    TeacherShare,
    TrainingLine,
)

SERVER = "server"  # id of the server among models and clients
# Shares of an excess smaller than this (nats/byte) would be shares of the test set's noise.
SMALLEST_EXCESS = 1e-3
MOST_PLOTTED = 15


@dataclass(frozen=True, slots=True)
class Measure:
    """Loss in nats/byte, its excess over the floor, accuracy in [0, 1]; None where unknown."""

    round: int
    loss: float
    excess: float | None
    accuracy: float | None

    @property
    def shown(self) -> float:
        """Value in plots: the excess where the floor is known, else the loss."""
        return self.loss if self.excess is None else self.excess


@dataclass(frozen=True)
class RunFolder:
    """A run folder in memory; the fields are those of config.json and of the line files."""

    folder: Path
    config: dict[str, Any]
    seed: int
    versions: dict[str, str]
    commit: str
    models: dict[str, str]
    domains: list[str]
    adapters: dict[str, str]
    names: dict[str, str]
    own_domain: dict[str, str]
    floor_loss: dict[str, float] | None
    floor_accuracy: dict[str, float]
    status: str
    metrics: list[Metric]
    training: list[TrainingLine]
    messages: list[MessageLine]
    teacher_shares: list[TeacherShare]
    gate_losses: list[GateLoss]
    acceptances: list[AcceptanceLine]
    events: list[Event]
    prompts: list[PromptLine]
    aggregations: list[AggregationLine]

    @cached_property
    def clients(self) -> list[str]:
        """Ids of the clients, in numeric order."""
        ids = (model for model in self.models if model != SERVER)
        return sorted(ids, key=lambda model: (not model.isdecimal(), len(model), model))

    @property
    def plotted(self) -> list[str]:
        """The clients that plots show: the first ones, as many as a page can hold."""
        return self.clients[:MOST_PLOTTED]

    @cached_property
    def measured(self) -> list[str]:
        """Ids of the models that metrics speak of, the server first."""
        seen = {metric.model for metric in self.metrics}
        return [model for model in (SERVER, *self.clients) if model in seen]

    @cached_property
    def stages(self) -> list[str]:
        """Stages that metrics speak of, in the order of ``STAGES``."""
        seen = {metric.stage for metric in self.metrics}
        return [stage for stage in STAGES if stage in seen]

    @cached_property
    def rounds(self) -> int:
        """Last federated round that was measured, 0 when there was none."""
        measured: list[Metric | PromptLine] = [*self.metrics, *self.prompts]
        return max((m.round for m in measured if m.stage == "federated"), default=0)

    @property
    def has_floor(self) -> bool:
        """Whether the entropy floor is known."""
        return self.floor_loss is not None

    @property
    def title(self) -> str:
        """The run's configured name, else that of its folder."""
        return clean(str(self.config.get("name") or self.folder.name))

    def name(self, model: str) -> str:
        """Name of a model or teacher for readers."""
        return self.names.get(model) or model

    @cached_property
    def _table(self) -> dict[tuple[str, str], dict[int, dict[str, Metric]]]:
        """``[model, stage][round][domain]``; of equal keys (a resumed run) the last counts."""
        table: dict[tuple[str, str], dict[int, dict[str, Metric]]] = {}
        for metric in self.metrics:
            rounds = table.setdefault((metric.model, metric.stage), {})
            rounds.setdefault(metric.round, {})[metric.domain] = metric
        return table

    def by_domain(self, model: str, stage: str) -> dict[str, Measure]:
        """Each domain's measure at the stage's last round, in the config's order of domains.

        A round that was cut short does not count: of those with the most domains, the last does.
        """
        rounds = self._table.get((model, stage), {})
        if not rounds:
            return {}
        last = rounds[max(rounds, key=lambda r: (len(rounds[r]), r))]
        return {domain: self._measure([last[domain]]) for domain in self.domains if domain in last}

    def noise(self, model: str, domain: str) -> float | None:
        """Largest rise since the untouched model that is noise, at the last round, nats/byte."""
        rounds = self._table.get((model, "federated"), {})
        last = [found[domain].noise for _, found in sorted(rounds.items()) if domain in found]
        return last[-1] if last else None

    def overall(
        self, model: str, stage: str, domains: Collection[str] | None = None
    ) -> Measure | None:
        """The mean over ``domains`` (default: all) at the stage's last round; None: no measure."""
        of_domains = self.by_domain(model, stage).items()
        found = [value for name, value in of_domains if domains is None or name in domains]
        if not found:
            return None
        loss = sum(measure.loss for measure in found) / len(found)
        excess = _average(measure.excess for measure in found)
        accuracy = _average(measure.accuracy for measure in found)
        return Measure(found[0].round, loss, excess, accuracy)

    def curve(self, model: str) -> list[Measure]:
        """All-domain means over the federation's rounds, from the untouched model (round 0) on."""
        rounds = self._table.get((model, "federated"), {})
        points = [self._measure(list(rounds[r].values())) for r in sorted(rounds)]
        start = self.overall(model, "zero-shot")
        if start is not None and points and points[0].round > start.round:
            points.insert(0, start)
        return points

    def reference(self, model: str) -> str:
        """Stage that federation is compared with: the model without it."""
        return "zero-shot" if model == SERVER else "standalone"

    def before_after(self, model: str) -> tuple[Measure, Measure] | None:
        """The reference and the federated measure over the domains that both cover."""
        before, after = self.reference(model), "federated"
        common = self.by_domain(model, before).keys() & self.by_domain(model, after).keys()
        pair = self.overall(model, before, common), self.overall(model, after, common)
        return None if pair[0] is None or pair[1] is None else (pair[0], pair[1])

    def change(self, model: str) -> float | None:
        """Federated loss less the reference's, nats/byte: below 0 is better."""
        pair = self.before_after(model)
        return None if pair is None else pair[1].loss - pair[0].loss

    def share_removed(self, model: str) -> float | None:
        """Share of the reference's excess that federation removed; below 0 it was added to."""
        pair = self.before_after(model)
        if pair is None or pair[0].excess is None or pair[1].excess is None:
            return None
        if not (pair[0].excess > SMALLEST_EXCESS and math.isfinite(pair[1].excess)):
            return None
        return 1 - pair[1].excess / pair[0].excess

    @property
    def floor(self) -> Measure | None:
        """The floor as an all-domain mean."""
        if self.floor_loss is None or not self.domains:
            return None
        loss = sum(self.floor_loss[domain] for domain in self.domains) / len(self.domains)
        return Measure(0, loss, 0.0, _average(map(self.floor_accuracy.get, self.domains)))

    @property
    def failures(self) -> list[MessageLine]:
        """Messages that ended in an error."""
        return [line for line in self.messages if line.error is not None]

    def _measure(self, metrics: list[Metric]) -> Measure:
        """The mean of one model's metrics in one round."""
        loss = sum(metric.loss for metric in metrics) / len(metrics)
        excess = None
        if self.floor_loss is not None:
            excess = loss - sum(self.floor_loss[m.domain] for m in metrics) / len(metrics)
        accuracy = _average(metric.accuracy for metric in metrics)
        return Measure(metrics[0].round, loss, excess, accuracy)


def _average(values: Iterable[float | None]) -> float | None:
    """Mean of those that are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def read_run(folder: Path | str) -> RunFolder:
    """Read a run folder; line files that do not exist (yet) count as empty.

    Raises:
        FedfuseError: for a folder without a config.json, and for the first malformed line, naming
            the file, the line, the key, what is expected, and the value.
    """
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise FedfuseError(f"{folder}: expected a run folder, with a config.json")
    fields = read_object(path)
    models, domains = fields.texts("models"), fields.names("domains")
    floor_loss, floor_accuracy = _read_floor(fields, domains)
    lines = LineReader(models, domains)
    return RunFolder(
        folder=folder.resolve(),
        config=fields.mapping("config").values,
        seed=fields.integer("seed"),
        versions=fields.texts("versions"),
        commit=fields.optional_text("commit") or "",
        models=models,
        domains=domains,
        adapters=fields.texts("adapters") if fields.values.get("adapters") else {},
        names=_distinct(fields.texts("names")),
        own_domain=fields.texts("own_domain") if fields.values.get("own_domain") else {},
        floor_loss=floor_loss,
        floor_accuracy=floor_accuracy,
        status=fields.one_of("status", ("running", "finished", "failed")),
        metrics=lines.read_file(folder, Metric),
        training=lines.read_file(folder, TrainingLine),
        messages=lines.read_file(folder, MessageLine),
        teacher_shares=lines.read_file(folder, TeacherShare),
        gate_losses=lines.read_file(folder, GateLoss),
        acceptances=lines.read_file(folder, AcceptanceLine),
        events=lines.read_file(folder, Event),
        prompts=lines.read_file(folder, PromptLine),
        aggregations=lines.read_file(folder, AggregationLine),
    )


def _distinct(names: dict[str, str]) -> dict[str, str]:
    """Names with the model's id where two models share one."""
    shared = {name for name, times in Counter(names.values()).items() if times > 1}
    return {m: f"{name} #{m}" if name in shared else name for m, name in names.items()}


def _read_floor(
    fields: Fields, domains: list[str]
) -> tuple[dict[str, float] | None, dict[str, float]]:
    if fields.values.get("floor") is None:
        return None, {}
    floor = fields.mapping("floor")
    loss, accuracy = floor.mapping("loss"), floor.mapping("accuracy")
    return (
        {domain: loss.number(domain, low=0) for domain in domains},
        {domain: accuracy.number(domain, 0, 1) for domain in domains if domain in accuracy.values},
    )

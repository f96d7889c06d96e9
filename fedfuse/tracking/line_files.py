"""JSON lines files of a run folder: which holds what kind of line, and how a line is read."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fedfuse.tracking.feddtpt_records import AggregationLine, KeptLine, PointLine, PromptLine
from fedfuse.tracking.json_fields import Fields, read_lines
from fedfuse.tracking.records import (
    EVENTS,
    STAGES,
    AcceptanceLine,
    Event,
    GateLoss,
    MessageLine,
    Metric,
    TeacherShare,
    TrainingLine,
)

T = TypeVar("T")

# Measured in a round: a run that is resumed measures it again.
MEASUREMENTS: dict[type, str] = {
    Metric: "metrics.jsonl",
    TrainingLine: "training.jsonl",
    TeacherShare: "teacher_shares.jsonl",
    GateLoss: "gates.jsonl",
    AcceptanceLine: "acceptance.jsonl",
    PromptLine: "prompts.jsonl",
    AggregationLine: "aggregations.jsonl",
}
# What messages cost was spent, and what happened has happened.
HISTORY: dict[type, str] = {MessageLine: "messages.jsonl", Event: "events.jsonl"}
FILES = MEASUREMENTS | HISTORY


class LineReader:
    """Reads lines of a run whose models and domains are known; each field by its name."""

    def __init__(self, models: Collection[str] = (), domains: Collection[str] = ()) -> None:
        of_training = ("steps", "private_samples", "public_samples", "queries")
        counts = ("round", "samples", "sent_bytes", "received_bytes", *of_training)
        texts = ("phase", "client", "detail", "chosen", "token")
        accuracies = ("accuracy", "normalized_accuracy", "test", "private")
        self._models = models
        self._readers: dict[str, Callable[[Fields, str], Any]] = {
            **dict.fromkeys(counts, Fields.integer),
            **dict.fromkeys(texts, Fields.text),
            **dict.fromkeys(("tokens", "clients"), Fields.names),
            **dict.fromkeys(("loss", "before", "after", "weight", "x", "y"), Fields.number),
            **dict.fromkeys(accuracies, partial(Fields.optional_number, low=0, high=1)),
            "noise": partial(Fields.optional_number, low=0),
            "seconds": partial(Fields.number, low=0),
            # Shares are counts divided by a count; allow for the rounding of their sums.
            "share": partial(Fields.number, low=0, high=1 + 1e-6),
            "error": Fields.optional_text,
            "keep": Fields.boolean,
            "stage": partial(Fields.one_of, choices=STAGES),
            "event": partial(Fields.one_of, choices=EVENTS),
            "direction": partial(Fields.one_of, choices=("up", "down")),
            "model": partial(Fields.one_of, choices=models),
            "domain": partial(Fields.one_of, choices=domains),
            "teacher": partial(Fields.one_of, choices=(*models, "none")),
            "changes": lambda line, name: line.mapping(name).numbers(),
            "scores": lambda line, name: line.mapping(name).numbers(0, 1),
            "cluster": lambda line, name: int(line.number(name, -1, 1e9)),
            "kept": lambda line, name: [self.read(KeptLine, x) for x in line.objects(name)],
            "uploaded": lambda line, name: [self._read_point(x) for x in line.objects(name)],
        }

    def read_file(self, folder: Path, kind: type[T]) -> list[T]:
        """Lines of a kind in a run folder; none where there is no such file (yet).

        Raises:
            FedfuseError: naming the file, the line, the key, the value and what is expected.
        """
        return read_lines(folder / FILES[kind], partial(self.read, kind))

    def read(self, kind: type[T], line: Fields) -> T:
        """Check and type one line."""
        names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
        return kind(**{name: self._readers[name](line, name) for name in names})

    def _read_point(self, line: Fields) -> PointLine:
        # In the other kinds any client is allowed: one that failed to register has no model.
        line.one_of("client", self._models)
        return self.read(PointLine, line)

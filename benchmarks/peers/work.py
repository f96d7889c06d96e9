"""What both sides are given and what they return, as JSON files.

Read in every environment: nothing but Python's own library is imported.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

IGNORED = -100
NAMED = ("torch", "transformers", "peft", "accelerate", "trl", "lm_eval")


@dataclass(frozen=True, slots=True)
class Work:
    """Models, texts and settings of a comparison.

    Attributes:
        student: folder of the model that learns, or is scored.
        teacher: folder of the model that teaches, of other tokens.
        adapter: folder of the adapter that the student begins with, as PEFT saves it.
        samples: prompt and answer of each sample; all are one batch.
        input_ids: the student's tokens of each sample.
        labels: the same where a token is learned, else ``IGNORED``.
        start: the start token that the library puts before every text; empty for none.
        questions: a prompt and its options.
        max_length: most tokens of a text.
        rates: learning rate of each step.
        beta2: AdamW's.
        weight_decay: AdamW's.
        max_grad_norm: longer gradients are clipped.
        steps: measured steps; one more comes first, in which things are set up.
        batch_sizes: of which the harness may take the fastest.
    """

    student: str
    teacher: str
    adapter: str
    samples: list[tuple[str, str]]
    input_ids: list[list[int]]
    labels: list[list[int]]
    start: str
    questions: list[tuple[str, list[str]]]
    max_length: int
    rates: list[float]
    beta2: float
    weight_decay: float
    max_grad_norm: float
    steps: int
    batch_sizes: list[int]

    def write(self, file: Path) -> None:
        """Write a file that ``read`` reads."""
        file.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, file: Path) -> Work:
        """The work of a file."""
        return cls(**json.loads(file.read_text()))

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens of the batch: all, with padding to the longest sample, and those learned."""
        lengths = [len(sample) for sample in self.input_ids]
        learned = sum(label != IGNORED for sample in self.labels for label in sample)
        return {
            "all": sum(lengths),
            "padded": len(lengths) * max(lengths),
            "learned": learned,
        }


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a side measured.

    Attributes:
        seconds: of each step, or of each scoring.
        cpu_seconds: of the processor in each.
        peak_bytes: what the process took at most in each, beyond what it had before.
        losses: of each step, that of the first included; or the log-likelihood of each option.
        more: what else shows that both sides did the same.
    """

    seconds: list[float]
    cpu_seconds: list[float]
    peak_bytes: list[int]
    losses: list[float]
    more: dict[str, Any]


def write_outcome(file: Path, outcome: dict[str, Measurement]) -> None:
    """Write what a side measured, by name, and the versions that it ran with."""
    found = {name: asdict(one) for name, one in outcome.items()}
    file.write_text(json.dumps({"versions": versions(NAMED), "outcome": found}))


def read_outcome(file: Path) -> tuple[dict[str, Measurement], dict[str, str]]:
    """What a side measured, and the versions that it ran with."""
    found = json.loads(file.read_text())
    outcome = {name: Measurement(**one) for name, one in found["outcome"].items()}
    return outcome, found["versions"]


def versions(names: Sequence[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

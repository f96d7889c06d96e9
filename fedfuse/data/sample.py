"""Samples: a prompt, the answer that is scored, and where both come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field


@dataclass(frozen=True, slots=True)
class Sample:
    """One example of a task.

    Attributes:
        prompt: text the model is given; never scored.
        answer: text that is scored. It carries its own leading space, so ``prompt + answer`` is the
            text.
        domain: name of the data's domain, "" when the source knows none.
        options: the answers to choose from, each in the form of ``answer``; empty for free text.
        label: index of the right option, -1 for free text.
        turns: of a chat, role and text of each turn before the answer, which models with a chat
            template of their own are given in place of ``prompt``; else empty.
    """

    prompt: str
    answer: str
    domain: str = ""
    options: tuple[str, ...] = ()
    label: int = -1
    turns: tuple[tuple[str, str], ...] = ()

    def answered(self, option: str) -> Sample:
        """A question with one of its options for its answer."""
        return Sample(self.prompt, option, self.domain, turns=self.turns)

    @property
    def text(self) -> str:
        """The whole text, as every model tokenizes it."""
        return self.prompt + self.answer

    @property
    def prompt_bytes(self) -> int:
        """Length of the prompt in UTF-8 bytes."""
        return len(self.prompt.encode())

    @property
    def answer_bytes(self) -> int:
        """Length of the scored text in UTF-8 bytes: the denominator of every loss."""
        return len(self.answer.encode())


@dataclass(frozen=True, slots=True)
class Floor:
    """What a perfect model would reach, known because the source is known.

    Attributes:
        loss: exact conditional entropy per domain, nats per byte of answer text.
        accuracy: Bayes accuracy on the domain's multiple-choice questions, in [0, 1].
    """

    loss: dict[str, float]
    accuracy: dict[str, float]


@dataclass(frozen=True, slots=True, eq=False)  # too large to compare but by identity
class SharedSamples:
    """What the server tells every client of the run's data.

    Attributes:
        public: the labelled set that everyone holds (``D_p`` of FedMKT).
        test: held out, for the reported losses.
        questions: multiple-choice samples, for the reported accuracies.
    """

    public: Sequence[Sample]
    test: Sequence[Sample]
    questions: Sequence[Sample] = ()


@dataclass(frozen=True, slots=True)
class Splits:
    """A data set as a federation needs it.

    Attributes:
        private: one list per client; never leaves it.
        public: the labelled set that everyone holds (``D_p`` of FedMKT).
        test: held out, for the reported losses.
        holdout: held out from all training, for the server's acceptance test and early stopping.
        questions: multiple-choice samples, for the reported accuracies.
        blind: samples whose answers the server alone knows.
        floor: exact optimum, where the source is known.
    """

    private: list[list[Sample]]
    public: list[Sample]
    test: list[Sample]
    holdout: list[Sample] = field(default_factory=list)
    questions: list[Sample] = field(default_factory=list)
    blind: list[Sample] = field(default_factory=list)
    floor: Floor | None = None

    @property
    def domains(self) -> list[str]:
        """Names of the domains that are tested, sorted."""
        return sorted({sample.domain for sample in self.test})


def fingerprint(samples: Iterable[Sample]) -> str:
    """Hash (SHA-256, hex) of samples' texts in their order, since knowledge is by position."""
    return _hash([sample.prompt, sample.answer] for sample in samples)


def whole_fingerprint(samples: Iterable[Sample]) -> str:
    """The same, of domains, options and labels too."""
    return _hash(list(astuple(sample)) for sample in samples)


def _hash(rows: Iterable[list[object]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode())
        digest.update(b"\n")
    return digest.hexdigest()

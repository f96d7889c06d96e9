"""Accuracies that the server measures, each question paid once in a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedfuse.feddtpt.accuracy import mean_accuracy
from fedfuse.feddtpt.black_box import Backend
from fedfuse.feddtpt.label_tasks import LabelledExample, Task
from fedfuse.feddtpt.ledger import Budget, Ledger
from fedfuse.feddtpt.masked_lm import MaskedLM
from fedfuse.feddtpt.meter import Meter
from fedfuse.feddtpt.prompt import Prompt


@dataclass(frozen=True, slots=True)
class PromptScorer:
    """Scores prompts on labelled examples, without a budget.

    Attributes:
        folder: folder of the ledger.
        task: task of the examples.
        lm: masked language model, whose tokens prompts are made of.
        backend: black box, which answers.
    """

    folder: Path
    task: Task
    lm: MaskedLM
    backend: Backend

    def accuracy(self, prompt: Prompt, examples: Sequence[LabelledExample], account: str) -> float:
        """Share of examples that a prompt labels rightly, in [0, 1].

        Raises:
            ServiceError: when the black box gives no answer.
        """
        with Ledger(self.folder / "ledger.sqlite") as ledger:
            meter = Meter(self.backend, ledger, Budget(), account)
            return mean_accuracy(self.task, self.lm.text(prompt), examples, meter)

    def cut(self, account: str) -> int:
        """Number of answers to an account that were cut off."""
        with Ledger(self.folder / "ledger.sqlite") as ledger:
            return ledger.cut(account)

    def paid(self, account: str) -> int:
        """Number of queries that an account has paid."""
        with Ledger(self.folder / "ledger.sqlite") as ledger:
            return ledger.spent(account).queries

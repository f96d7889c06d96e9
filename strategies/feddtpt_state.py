"""What ``FedDTPT`` is given: config, examples, masked language model, black box and run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from flwr.app import Message
from numpy import ndarray

from fedfuse.config.run_config import RunConfig
from fedfuse.factory.feddtpt import load_backend, load_masked_lm, load_task
from fedfuse.feddtpt.accuracy import Batch, accuracy
from fedfuse.feddtpt.black_box import Backend
from fedfuse.feddtpt.example_splits import ExampleSplits
from fedfuse.feddtpt.label_tasks import Example, Task
from fedfuse.feddtpt.ledger import Budget, Ledger
from fedfuse.feddtpt.masked_lm import MaskedLM
from fedfuse.feddtpt.meter import Meter
from fedfuse.feddtpt.prompt import Prompt, TunedPrompt
from fedfuse.files import atomic_write
from fedfuse.flower.feddtpt_messages import unpack_tuned
from fedfuse.tracking.checkpoints import Checkpoint
from fedfuse.tracking.run_writer import RunWriter
from strategies.server_state import SERVER, checkpoints, open_run, restore_latest

VALIDATION, TEST = "validation", "test"


@dataclass(slots=True)
class FedDTPTState:
    """One run on the server, which has no language model of its own.

    Attributes:
        config: the run config.
        run: the run folder.
        task: of the examples.
        splits: public, validation and test examples; private ones are not looked at.
        lm: the masked language model that all share.
        backend: the black box.
        start: the prompt that the first round begins with.
    """

    config: RunConfig
    run: RunWriter
    task: Task
    splits: ExampleSplits
    lm: MaskedLM
    backend: Backend
    start: Prompt

    def checkpoint(
        self, server_round: int, strategy: Mapping[str, ndarray], result: Mapping[str, Any]
    ) -> None:
        """Save all that is needed to go on after a round, and the global prompt as text, in
        ``server/prompt.json``.

        Args:
            server_round: that is over.
            strategy: its own state.
            result: metrics so far, as JSON holds them.

        Raises:
            FedfuseError: when it cannot be written; the checkpoint before stays.
        """
        tokens = tuple(strategy["prompt"].tolist())
        whole = {"round": server_round, "text": self.lm.text(Prompt(tokens)), "tokens": tokens}
        with atomic_write(self.folder / "prompt.json") as scratch:
            scratch.write_text(json.dumps(whole) + "\n")
        arrays = {f"strategy|{name}": value for name, value in strategy.items()}
        facts = {"sizes": self.run.sizes(), "result": result}
        checkpoints(self.run).save(Checkpoint(server_round, arrays, facts))

    def resume(self) -> Checkpoint | None:
        """Go back to the last whole round of the run that the config names, if it names one."""
        return restore_latest(self.config, self.run)

    @property
    def folder(self) -> Path:
        """The server's own files."""
        return self.run.folder / SERVER

    def accuracy(self, prompt: Prompt, examples: Sequence[Example], account: str) -> float:
        """The share of examples that a prompt labels rightly, in [0, 1]; each question is paid for
        once in a run.
        """
        weights = (Fraction(1, len(examples)),) * len(examples)
        with Ledger(self.folder / "ledger.sqlite") as ledger:
            meter = Meter(self.backend, ledger, Budget(), account)
            batch = Batch(tuple(examples), weights)
            found = accuracy(self.task, self.lm.text(prompt), batch, meter)
        assert found is not None  # there is no floor to give up below
        return found

    def paid(self, account: str) -> int:
        """Queries of an account."""
        with Ledger(self.folder / "ledger.sqlite") as ledger:
            return ledger.spent(account).queries

    def take(self, reply: Message, given: Prompt, queries: int) -> TunedPrompt:
        """A client's prompt, checked.

        Args:
            reply: that has it.
            given: the prompt that the client began with: of its tokens, and those that may be
                proposed.
            queries: most that the client may have paid for.

        Raises:
            FedfuseError: for a prompt that is malformed, too long or impossible.
        """
        known = {*self.lm.allowed.tolist(), *given.tokens}

        def fits(prompt: Prompt) -> bool:
            return known.issuperset(prompt.tokens) and self.lm.canonical(prompt) == prompt

        length = max(self.config.prompts.length, len(given.tokens))
        return unpack_tuned(reply.content, fits, length, queries)

    def words(self, prompt: Prompt) -> list[str]:
        """The text of each token."""
        return [self.word(token) for token in prompt.tokens]

    def word(self, token: int) -> str:
        """The text of a token."""
        return self.lm.tokenizer.decode([token])


def open_feddtpt_state(config: RunConfig) -> FedDTPTState:
    """Load data and models, then make the run folder: bad input leaves none behind."""
    prompts, device = config.prompts, config.server.device
    task, splits = load_task(prompts, config.data.template, config.seed, 1)
    lm = load_masked_lm(prompts.masked_lm, device)
    start = lm.encode(prompts.start)
    backend = load_backend(config.black_box, device)
    run = open_run(config, domains=[task.name], models={SERVER: config.black_box.model})
    (run.folder / SERVER).mkdir(exist_ok=True)
    return FedDTPTState(config, run, task, splits, lm, backend, start)

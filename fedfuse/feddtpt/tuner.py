"""One client's searches, round after round, in a folder that outlives its process.

The folder has the ledger and, for each round, the states of its searches after their last steps.
The same search asked for again, after a kill or because a message came twice, goes on from there:
nothing is paid twice, and the round's budget is what it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from fedfuse.config.feddtpt import SearchConfig
from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.accuracy import ExampleBatch, mean_accuracy
from fedfuse.feddtpt.black_box import Backend
from fedfuse.feddtpt.label_tasks import LabelledExample, Task
from fedfuse.feddtpt.ledger import Budget, Ledger
from fedfuse.feddtpt.masked_lm import MaskedLM
from fedfuse.feddtpt.meter import Meter
from fedfuse.feddtpt.prompt import Prompt, TunedPrompt
from fedfuse.feddtpt.search import PromptSearch
from fedfuse.feddtpt.search_state import Feedback, SearchState
from fedfuse.files import atomic_write


@dataclass(frozen=True)
class ClientPromptTuner:
    """A client with its examples, its black box and its folder.

    Attributes:
        folder: folder of its ledger and its searches; nobody else writes there at the same time.
        task: task of the examples.
        batch: examples that prompts are compared on.
        lm: masked language model, which proposes tokens.
        backend: black box, which answers.
        config: the search; its queries are the budget of one round.
        seed: seed of all rounds.
    """

    folder: Path
    task: Task
    batch: ExampleBatch
    lm: MaskedLM
    backend: Backend
    config: SearchConfig
    seed: int

    def search(self, start: Prompt, server_round: int) -> TunedPrompt:
        """The best of ``paths``, the first of equals; ``queries`` is all that the round has paid.

        Raises:
            BudgetExceeded, ServiceError: as ``paths``.
        """
        best = max(self.paths(start, server_round), key=lambda tuned: tuned.accuracy)
        return replace(best, queries=self.paid(start, server_round))

    def paid(self, start: Prompt, server_round: int) -> int:
        """Queries of the round that begins with a prompt, those of ``accuracy`` too."""
        with Ledger(self.folder / "ledger.sqlite") as ledger:
            return self._meter(ledger, start, server_round).spent.queries

    def paths(self, start: Prompt, server_round: int) -> list[TunedPrompt]:
        """Search from a prompt, again after each path that ended if there are restarts.

        What was stopped goes on. The feedback of earlier paths and rounds goes on, too. Their
        ``queries`` are 0, as what was paid is the round's: see ``paid``.

        Raises:
            BudgetExceeded: when not even the first prompt can be evaluated.
            ServiceError: when the black box gives no answer; a later call goes on.
        """
        found: list[TunedPrompt] = []
        before = self.last(server_round - 1)
        feedback = before.feedback if before else Feedback()
        key = self._key(start, server_round)
        with Ledger(self.folder / "ledger.sqlite") as ledger:
            meter = self._meter(ledger, start, server_round)
            for path in range(1 + self.config.restarts):
                spent = meter.spent.queries >= self.config.queries
                if found and (spent or found[-1].accuracy == 1):
                    break
                seed, file = _seed(self.seed, server_round, path), self._path(server_round, path)
                search = PromptSearch(self.task, self.batch, self.lm, meter, self.config, seed)
                state = self._saved(file, key) or search.begin(start, feedback)
                tuned = search.run(state, partial(self._save, file, key))
                found.append(replace(tuned, queries=0))
                feedback = state.feedback
        return found

    def accuracy(
        self, prompt: Prompt, examples: Sequence[LabelledExample], next_round: int
    ) -> float:
        """Share of examples that a prompt labels rightly, in [0, 1].

        It is paid from the budget of the round that begins with this prompt and asks the same
        questions again.

        Raises:
            BudgetExceeded, ServiceError: from the black box.
        """
        with Ledger(self.folder / "ledger.sqlite") as ledger:
            meter = self._meter(ledger, prompt, next_round)
            text = self.lm.text(self.lm.canonical(prompt))
            return mean_accuracy(self.task, text, examples, meter)

    def last(self, server_round: int) -> SearchState | None:
        """Last search of a round, or of the last one before that this client took part in."""
        for number in range(server_round, 0, -1):
            for path in range(self.config.restarts, -1, -1):
                saved = _read(self._path(number, path))
                if saved and saved[0] == self._self:  # not of an earlier run of this name
                    return saved[2]
        return None

    def _meter(self, ledger: Ledger, start: Prompt, server_round: int) -> Meter:
        # By its key: a folder that an earlier run of this name left has spent nothing of this one.
        account = f"round {server_round} {self._key(start, server_round)[:16]}"
        return Meter(self.backend, ledger, Budget(self.config.queries), account)

    def _path(self, server_round: int, path: int) -> Path:
        return self.folder / f"search-{server_round}{f'-{path}' if path else ''}.json"

    def _saved(self, file: Path, key: str) -> SearchState | None:
        saved = _read(file)
        return saved[2] if saved and saved[:2] == (self._self, key) else None

    def _save(self, file: Path, key: str, state: SearchState) -> None:
        saved = {"tuner": self._self, "search": key, "state": state.to_json()}
        with atomic_write(file) as scratch:
            scratch.write_text(json.dumps(saved))

    def _key(self, start: Prompt, server_round: int) -> str:
        """SHA-256 (hex) of all that a search depends on, but for feedback of earlier rounds."""
        return _sha256(self._self, self.lm.canonical(start), server_round)

    @cached_property
    def _self(self) -> str:
        """SHA-256 (hex) of all that every round depends on."""
        task = (self.task.name, sorted(self.task.verbalizer.items()), self.task.template)
        return _sha256(
            *(task, self.batch, self.lm.tokenizer.fingerprint),
            *(self.backend.name, self.config, self.seed),
        )


def _read(file: Path) -> tuple[str, str, SearchState] | None:
    """Keys of the tuner and of the search, and the search's state; None where none is saved."""
    if not file.exists():
        return None
    try:
        saved = json.loads(file.read_text())
        state = SearchState.from_json(saved["state"])
        return str(saved["tuner"]), str(saved["search"]), state
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise FedfuseError(f"{file}: expected a search of this client, got {error}") from error


def _seed(seed: int, server_round: int, path: int) -> int:
    """Seed of a path's draws."""
    named = f"{seed}/{server_round}{f'/{path}' if path else ''}"
    return int.from_bytes(hashlib.sha256(named.encode()).digest()[:4], "little")


def _sha256(*whole: object) -> str:
    return hashlib.sha256(repr(whole).encode()).hexdigest()

"""One client's searches, turn after turn, in a folder that outlives its process.

The folder has the ledger and, for each turn, the state of its search after its last step. Whoever
asks for the same search again, after a kill or because a message came twice, gets what there is of
it: nothing is paid twice, and the turn's budget is what it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from fedfuse.config.feddtpt_settings import SearchSettings
from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.accuracy import Batch, accuracy
from fedfuse.feddtpt.black_box import Backend
from fedfuse.feddtpt.feedback import Feedback
from fedfuse.feddtpt.label_tasks import Example, Task
from fedfuse.feddtpt.ledger import Budget, Ledger
from fedfuse.feddtpt.masked_lm import MaskedLM
from fedfuse.feddtpt.meter import Meter
from fedfuse.feddtpt.prompt import Prompt, TunedPrompt
from fedfuse.feddtpt.search import Search
from fedfuse.feddtpt.search_state import SearchState


@dataclass(frozen=True)
class ClientPromptTuner:
    """A client with its examples, its black box and its folder.

    Attributes:
        folder: of its ledger and its searches; nobody else writes there at the same time.
        task: of the examples.
        batch: what prompts are compared on.
        lm: proposes tokens.
        backend: answers.
        settings: how to search.
        queries: most that one turn may pay for.
        seed: of all turns.
    """

    folder: Path
    task: Task
    batch: Batch
    lm: MaskedLM
    backend: Backend
    settings: SearchSettings
    queries: int
    seed: int

    def search(self, start: Prompt, turn: int) -> TunedPrompt:
        """Search from a prompt, or go on where this very search was stopped.

        What feedback earlier turns gave goes on. ``queries`` of the result is all that the turn
        has paid.

        Raises:
            BudgetSpent: when not even the first prompt can be evaluated.
            BlackBoxError: when the black box gives no answer; the search can be gone on with.
        """
        with Ledger(self.folder / "ledger.sqlite") as ledger:
            meter = self._meter(ledger, start, turn)
            search = Search(
                self.task, self.batch, self.lm, meter, self.settings, _seed(self.seed, turn)
            )
            key = self._key(start, turn)
            state = self._kept(turn, key)
            if state is None:
                before = self.last(turn - 1)
                state = search.begin(start, before.feedback if before else Feedback())
            tuned = search.run(state, lambda now: self._keep(turn, key, now))
            return replace(tuned, queries=meter.spent.queries)

    def accuracy(self, prompt: Prompt, examples: Sequence[Example], next_turn: int) -> float:
        """The share of examples that a prompt labels rightly, in [0, 1].

        It is paid from the turn that begins with this prompt and asks the same questions again.

        Raises:
            BudgetSpent, BlackBoxError: of the black box.
        """
        weights = (Fraction(1, len(examples)),) * len(examples)
        with Ledger(self.folder / "ledger.sqlite") as ledger:
            meter = self._meter(ledger, prompt, next_turn)
            text = self.lm.text(self.lm.canonical(prompt))
            found = accuracy(self.task, text, Batch(tuple(examples), weights), meter)
        assert found is not None  # there is no floor to give up below
        return found

    def last(self, turn: int) -> SearchState | None:
        """The search of a turn, or of the last one before it that this client took part in."""
        for number in range(turn, 0, -1):
            if (path := self._path(number)).exists():
                kept = _read(path)
                if kept.searcher == self._self:  # not of an earlier run of this name
                    return kept.state
        return None

    def _meter(self, ledger: Ledger, start: Prompt, turn: int) -> Meter:
        # By its key: a folder that an earlier run of this name left has spent nothing of this one.
        account = f"turn {turn} {self._key(start, turn)[:16]}"
        return Meter(self.backend, ledger, Budget(self.queries), account)

    def _path(self, turn: int) -> Path:
        return self.folder / f"search-{turn}.json"

    def _kept(self, turn: int, key: str) -> SearchState | None:
        path = self._path(turn)
        if not path.exists():
            return None
        kept = _read(path)
        return kept.state if (kept.searcher, kept.search) == (self._self, key) else None

    def _keep(self, turn: int, key: str, state: SearchState) -> None:
        path = self._path(turn)
        scratch = path.with_suffix(".new")
        kept = {"searcher": self._self, "search": key, "state": state.to_json()}
        scratch.write_text(json.dumps(kept))
        scratch.replace(path)

    def _key(self, start: Prompt, turn: int) -> str:
        """SHA-256 (hex) of all that a search depends on, but for feedback of earlier turns."""
        return _sha256(self._self, self.lm.canonical(start), turn)

    @cached_property
    def _self(self) -> str:
        """SHA-256 (hex) of all that every turn depends on."""
        task = (self.task.name, sorted(self.task.verbalizer.items()), self.task.template)
        return _sha256(
            *(task, self.batch, self.lm.tokenizer.fingerprint),
            *(self.backend.name, self.settings, self.queries, self.seed),
        )


@dataclass(frozen=True, slots=True)
class _Kept:
    """A search as its file has it, with the keys of whose it is and which."""

    searcher: str
    search: str
    state: SearchState


def _seed(seed: int, turn: int) -> int:
    """Of a turn's draws."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{turn}".encode()).digest()[:4], "little")


def _sha256(*whole: object) -> str:
    return hashlib.sha256(repr(whole).encode()).hexdigest()


def _read(path: Path) -> _Kept:
    try:
        whole = json.loads(path.read_text())
        state = SearchState.from_json(whole["state"])
        return _Kept(str(whole["searcher"]), str(whole["search"]), state)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise FedfuseError(f"{path}: {error}; allowed: a search of this client") from error

"""Which clients take part in a round: all, or a few of many, in turns."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Container, Mapping, Sequence

from numpy import ndarray

from fedfuse.config.run_config import RunConfig, derive_seed
from fedfuse.tracking.checkpoints import as_array, as_texts

_KEY = "participation"


class Participation:
    """Draws the clients of each round: those that had the fewest turns, at random among equals.

    Who cannot be asked now is passed over and is among the first later; of several turns that it
    missed it gets one. Who is asked and does not answer has had its turn.

    Args:
        config: run config, with ``clients-per-round``.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._turns = Counter[str]()
        self._chosen: dict[int, list[str]] = {}

    def clients(
        self, server_round: int, names: Sequence[str], available: Container[str]
    ) -> list[str]:
        """Clients of a round, in the order of ``names``; the same whenever it is asked again.

        Args:
            server_round: number of the round, 1 or more.
            names: all clients.
            available: those that can be asked.
        """
        if not self._config.clients_per_round:
            return list(names)
        if server_round not in self._chosen:
            size = self.size(len(names))
            here = [name for name in names if name in available]
            least = min((self._turns[name] for name in here), default=0)
            for name in names:  # who came later, or was away
                self._turns[name] = max(self._turns[name], least)
            by_turn = sorted(here, key=lambda name: (self._turns[name], self._lot(name)))
            self._chosen[server_round] = by_turn[:size]
            self._turns.update(by_turn[:size])
        chosen = self._chosen[server_round]
        return [name for name in names if name in chosen]

    def size(self, clients: int) -> int:
        """How many of so many clients a round asks, if they are there."""
        wanted = self._config.clients_per_round
        if not wanted:
            return clients
        return min(clients, int(wanted) if wanted >= 1 else math.ceil(wanted * clients))

    def rounds(self, client: str) -> int:
        """Number of rounds that a client took part in; of the run, where all do."""
        if not self._config.clients_per_round:
            return self._config.rounds
        return sum(client in chosen for chosen in self._chosen.values())

    def _lot(self, client: str) -> int:
        """Drawn anew for each turn."""
        return derive_seed(self._config, "participation", client, self._turns[client])

    def state(self) -> dict[str, ndarray]:
        """What a run that goes on has to know; nothing where all take part."""
        if not self._config.clients_per_round:
            return {}
        kept = {"turns": json.dumps(self._turns), "chosen": json.dumps(self._chosen)}
        return {_KEY: as_array(kept)}

    def load(self, state: Mapping[str, ndarray]) -> None:
        """Go on where ``state`` was taken."""
        if _KEY in state:
            kept = as_texts(state[_KEY])
            self._turns = Counter(json.loads(kept["turns"]))
            chosen = json.loads(kept["chosen"])
            self._chosen = {int(number): names for number, names in chosen.items()}

"""The phases of a round, each asked for in one message to each client."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flwr.app import Message

from strategies.messenger import Messenger, ReplyStream


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of one round.

    Attributes:
        round: number of the round.
        configure: makes the requests, at most one per node.
        aggregate: takes the replies.
        meanwhile: work for the server while the clients are busy.
        minimum: good replies without which the run is given up; fewer where fewer are asked.
        needs_replies: whether the server cannot go on before it has the replies.
    """

    round: int
    configure: Callable[[], Sequence[Message]]
    aggregate: Callable[[ReplyStream], None]
    meanwhile: Callable[[], None] = lambda: None
    minimum: int = 0
    needs_replies: bool = False


class PhaseRunner:
    """Runs each phase at once, in a message of its own.

    Attributes:
        waiting: phases that are to go along with a later message; here none.
    """

    def __init__(self, messenger: Messenger) -> None:
        self.messenger = messenger
        self.waiting: list[Phase] = []

    def run(self, phase: Phase) -> None:
        """Send a phase's requests and aggregate the replies.

        Raises:
            FedfuseError: when too few clients answer.
        """
        requests = phase.configure()
        minimum = min(phase.minimum, len(requests))
        replies = self.messenger.stream(phase.round, requests, minimum=minimum)
        phase.meanwhile()
        phase.aggregate(replies)

    def is_due(self, server_round: int) -> bool:
        """Whether a checkpoint is to be written at the end of a round."""
        return True

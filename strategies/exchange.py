"""One phase of a round: send a message to each client, and take the replies that are any good."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from fedfuse.errors import FedfuseError
from fedfuse.flower.grid import message_bytes
from fedfuse.report.writing import RunWriter

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
_FLOWERS_WORDS = "Exception ClientAppException occurred. Message: "


@dataclass(frozen=True, slots=True)
class Reply:
    """A client's good reply.

    Attributes:
        client: the client's name, its partition id.
        message: what it sent.
    """

    client: str
    message: Message


class Exchange:
    """Sends phases and keeps the ledger. Failed, late and repeated replies are counted, not
    trusted."""

    def __init__(self, grid: Grid, run: RunWriter, timeout: float) -> None:
        self._grid = grid
        self._run = run
        self._timeout = timeout
        self.names: dict[int, str] = {}

    def name(self, node_id: int) -> str:
        """The name of a node's client; the node id until it has registered."""
        return self.names.get(node_id, str(node_id))

    def __call__(
        self,
        server_round: int,
        messages: Iterable[Message],
        meanwhile: Callable[[], None] | None = None,
        greet: Callable[[Message], None] | None = None,
    ) -> list[Message]:
        """Send messages, wait for the replies, return those without an error, by client name.

        Args:
            server_round: for the ledger.
            messages: at most one per node.
            meanwhile: work for the server while the clients are busy.
            greet: called with each good reply before it is written down: it may name its sender.
        """
        sent = {m.metadata.dst_node_id: m for m in messages}
        if not sent:
            return []
        phase = next(iter(sent.values())).metadata.message_type
        sizes = {node: message_bytes(message) for node, message in sent.items()}
        started = time.monotonic()
        waiting = set(self._grid.push_messages(list(sent.values())))
        if meanwhile:
            meanwhile()
        replies: dict[int, tuple[Message, float]] = {}
        while True:
            for reply in self._grid.pull_messages(list(waiting)):
                waiting.discard(reply.metadata.reply_to_message_id)
                node = reply.metadata.src_node_id
                if node in sent and node not in replies:
                    replies[node] = (reply, time.monotonic() - started)
            if not waiting or time.monotonic() - started > self._timeout:
                break
            time.sleep(POLL_SECONDS)
        good = []
        for node in sorted(sent, key=self.name):
            reply_and_time = replies.get(node)
            if greet and reply_and_time and not reply_and_time[0].has_error():
                greet(reply_and_time[0])
            if self._record(server_round, phase, node, sizes[node], reply_and_time):
                good.append(replies[node][0])
        return good

    def refuse(self, server_round: int, phase: str, node_id: int, error: Exception) -> None:
        """Note that a reply's content was no good."""
        log.warning("%s of client %s refused: %s", phase, self.name(node_id), error)
        self._run.exchange(server_round, phase, self.name(node_id), error=f"refused: {error}")

    def _record(
        self,
        server_round: int,
        phase: str,
        node: int,
        size: int,
        answer: tuple[Message, float] | None,
    ) -> bool:
        """Write the ledger's line; whether the reply can be used."""
        if answer is None:
            error: str | None = f"no reply within {self._timeout:g} s"
            received, seconds = 0, self._timeout
        else:
            reply, seconds = answer
            received = message_bytes(reply)
            error = _last_line(reply.error.reason) if reply.has_error() else None
        if error:
            log.warning("%s of client %s failed: %s", phase, self.name(node), error)
        self._run.exchange(
            server_round,
            phase,
            self.name(node),
            sent_bytes=size,
            received_bytes=received,
            seconds=seconds,
            error=error,
        )
        return error is None


def _last_line(reason: str | None) -> str:
    """The line of a reason that says what happened, without what Flower puts around it."""
    lines = [line.strip() for line in (reason or "").removesuffix("'>").splitlines()]
    lines = [line.removeprefix(_FLOWERS_WORDS) for line in lines if line]
    telling = [line for line in lines if "Error" in line]
    return (telling or lines or ["the client failed"])[-1][:500]


def require(replies: Sized, minimum: int, phase: str) -> None:
    """Stop a run that has too few clients left.

    Raises:
        FedfuseError: naming the phase and both numbers.
    """
    if len(replies) < minimum:
        raise FedfuseError(
            f"{phase}: {len(replies)} clients answered; allowed: at least {minimum} (min-clients)"
        )

"""Sends the messages of a phase, collects the replies and writes messages.jsonl."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from fedfuse.errors import FedfuseError
from fedfuse.simulation.in_process import message_bytes
from fedfuse.tracking.run_writer import RunWriter

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
# Seconds between two lines of the log that say for whom the server waits, and the names in one.
PATIENCE_SECONDS = 60.0
NAMES_SHOWN = 5
# Replies pulled at once: all of a batch are in memory.
BATCH = 8
# Time to live of a request and its reply beyond the deadline: a client that returns after a long
# time must not work through requests that nobody waits for. Where a client ends while it uploads
# its reply, Flower waits for the rest, up to 180 s, and does not pull the others meanwhile: they
# must outlive that.
GRACE_SECONDS = 240.0
_FLOWERS_WORDS = "Exception ClientAppException occurred. Message: "


@dataclass(frozen=True, slots=True)
class SentPhase:
    """Messages of one phase that were sent.

    Attributes:
        round: round of the run.
        name: type of the messages.
        sizes: bytes of each message by node.
        started: time of sending, monotonic clock.
    """

    round: int
    name: str
    sizes: Mapping[int, int]
    started: float


class ReplyStream(Iterator[Message]):
    """Replies without an error as they arrive; none is kept after it was handed out.

    Attributes:
        waited: seconds spent waiting for replies so far.
    """

    def __init__(self, replies: Iterator[Message]) -> None:
        self._replies = replies
        self.waited = 0.0

    def __next__(self) -> Message:
        started = time.monotonic()
        try:
            return next(self._replies)
        finally:
            self.waited += time.monotonic() - started


class Messenger:
    """Sends phases and writes messages.jsonl; failed, late and repeated replies are not used.

    Attributes:
        names: names of registered clients by node.
        absent: clients of an interrupted run that have not registered again.
    """

    def __init__(self, grid: Grid, run: RunWriter, timeout: float) -> None:
        self._grid = grid
        self._run = run
        self._timeout = timeout
        self.names: dict[int, str] = {}
        self.absent: set[str] = set()

    def name(self, node_id: int) -> str:
        """Name of a node's client; the node id until it has registered."""
        return self.names.get(node_id, str(node_id))

    def connected(self) -> set[int]:
        """Nodes that Flower lists now."""
        return set(self._grid.get_node_ids())

    def send_and_receive(
        self,
        server_round: int,
        messages: Iterable[Message],
        meanwhile: Callable[[], None] | None = None,
        minimum: int = 0,
    ) -> list[Message]:
        """Send messages, wait for the replies, return those without an error, by client name.

        Args:
            server_round: round of the run, for messages.jsonl.
            messages: at most one per node.
            meanwhile: work for the server while the clients are busy.
            minimum: least number of replies without an error.

        Raises:
            FedfuseError: when there are fewer.
        """
        replies = self.stream(server_round, messages, minimum=minimum)
        if meanwhile:
            meanwhile()
        return self.sort(replies)

    def sort(self, replies: Iterable[Message]) -> list[Message]:
        """All replies, by client name."""
        return sorted(replies, key=lambda reply: self.name(reply.metadata.src_node_id))

    def stream(
        self,
        server_round: int,
        messages: Iterable[Message],
        on_reply: Callable[[Message], None] | None = None,
        minimum: int = 0,
    ) -> ReplyStream:
        """Send messages at once; yield the replies without an error as they arrive.

        Args:
            server_round: round of the run, for messages.jsonl.
            messages: at most one per node.
            on_reply: called with each such reply before it is recorded; may name its sender.
            minimum: least number of replies without an error, checked at the end of the phase.
        """
        asked = list(messages)
        if not asked:
            return ReplyStream(iter(()))
        there = self.connected()
        sent = [message for message in asked if message.metadata.dst_node_id in there]
        phase = SentPhase(
            server_round,
            asked[0].metadata.message_type,
            {message.metadata.dst_node_id: message_bytes(message) for message in sent},
            time.monotonic(),
        )
        self._run.progress(round=server_round, phase=phase.name, clients=len(sent))
        nodes = {message.metadata.dst_node_id for message in asked}
        missing = {self.name(node) for node in nodes - there}
        if nodes == set(self.names):  # all are asked
            missing |= self.absent
        for client in sorted(missing):
            self._fail(phase, client, "not connected")
        for message in sent:
            message.metadata.ttl = self._timeout + GRACE_SECONDS
        waiting = list(self._grid.push_messages(sent))
        return ReplyStream(self._receive(phase, waiting, on_reply, minimum))

    def refuse(self, server_round: int, phase: str, client: str, error: Exception) -> None:
        """Write down that the content of a client's reply cannot be used."""
        log.warning("%s of client %s refused: %s", phase, client, error, extra={"client": client})
        self._run.message(server_round, phase, client, error=f"refused: {error}")

    def _receive(
        self,
        phase: SentPhase,
        waiting: Iterable[str],
        on_reply: Callable[[Message], None] | None,
        minimum: int,
    ) -> Iterator[Message]:
        """Replies without an error to the messages with the ids ``waiting``."""
        missing, left = set(phase.sizes), dict.fromkeys(waiting)
        good, late, told = 0, False, time.monotonic()
        while left and not late:
            # Before the replies are pulled: one that came in time counts, however long the server
            # takes for the others.
            late = time.monotonic() - phase.started > self._timeout
            for reply in self._pull(left):
                node = reply.metadata.src_node_id
                if node not in missing:
                    continue
                missing.remove(node)
                if on_reply and not reply.has_error():
                    on_reply(reply)
                if self._record(phase, node, reply):
                    good += 1
                    yield reply
            if left and not late:
                if time.monotonic() - told > PATIENCE_SECONDS:
                    told = time.monotonic()
                    self._tell(phase, missing)
                time.sleep(POLL_SECONDS)
        for node in sorted(missing, key=self.name):
            self._record(phase, node, None)
        require(good, minimum, phase.name)

    def _tell(self, phase: SentPhase, missing: set[int]) -> None:
        """Say in the log for whom the server waits."""
        names = sorted(self.name(node) for node in missing)
        shown = ", ".join(names[:NAMES_SHOWN]) + (", ..." if names[NAMES_SHOWN:] else "")
        asked, seconds = len(phase.sizes), time.monotonic() - phase.started
        log.info(
            "%s: waiting for %d of %d clients since %.0f s: %s",
            *(phase.name, len(names), asked, seconds, shown),
        )

    def _pull(self, left: dict[str, None]) -> Iterator[Message]:
        """Replies that have arrived for the message ids in ``left``, which shrinks by them."""
        asked = list(left)
        for start in range(0, len(asked), BATCH):
            batch = deque(self._grid.pull_messages(asked[start : start + BATCH]))
            while batch:
                reply = batch.popleft()
                left.pop(reply.metadata.reply_to_message_id, None)
                yield reply

    def _record(self, phase: SentPhase, node: int, reply: Message | None) -> bool:
        """Write a line of messages.jsonl; returns whether the reply can be used."""
        received, error = 0, None
        seconds = time.monotonic() - phase.started
        if reply is None:
            error, seconds = f"no reply within {self._timeout:g} s", self._timeout
        else:
            received = message_bytes(reply)
            if reply.has_error():
                error = _last_line(reply.error.reason)
        if error:
            self._fail(phase, self.name(node), error, phase.sizes[node], received, seconds)
            return False
        self._run.message(
            phase.round,
            phase.name,
            self.name(node),
            sent_bytes=phase.sizes[node],
            received_bytes=received,
            seconds=seconds,
        )
        return True

    def _fail(
        self,
        phase: SentPhase,
        client: str,
        error: str,
        sent_bytes: int = 0,
        received_bytes: int = 0,
        seconds: float = 0.0,
    ) -> None:
        """Write a line of messages.jsonl for a request that failed."""
        log.warning(
            "%s of client %s failed: %s", phase.name, client, error, extra={"client": client}
        )
        self._run.message(
            phase.round,
            phase.name,
            client,
            sent_bytes=sent_bytes,
            received_bytes=received_bytes,
            seconds=seconds,
            error=error,
        )


def _last_line(reason: str | None) -> str:
    """The telling line of an error's reason, without what Flower puts around it."""
    lines = [line.strip() for line in (reason or "").removesuffix("'>").splitlines()]
    lines = [line.removeprefix(_FLOWERS_WORDS) for line in lines if line]
    telling = [line for line in lines if "Error" in line]
    return (telling or lines or ["the client failed"])[-1][:500]


def require(answered: int, minimum: int, phase: str) -> None:
    """Check that enough clients answered.

    Raises:
        FedfuseError: when there are fewer than the minimum.
    """
    if answered < minimum:
        raise FedfuseError(
            f"{phase}: expected replies of at least {minimum} clients (min-clients), got {answered}"
        )

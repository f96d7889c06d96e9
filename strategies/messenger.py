"""One phase of a round: send a message to each client, and take the replies that are any good."""

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
# Replies asked for at once: those that are there and wait for their turn are held in memory.
BATCH = 8
# A request that its client did not get within the deadline and this is not delivered at all: who
# returns after a long time does not work off what nobody waits for. Replies live no longer. Where a
# client ends while it uploads its reply, Flower waits for the rest, up to 180 s, and does not ask
# for the others' meanwhile: they must outlive that.
GRACE_SECONDS = 240.0
_FLOWERS_WORDS = "Exception ClientAppException occurred. Message: "


@dataclass(frozen=True, slots=True)
class SentPhase:
    """Messages of one phase that were sent.

    Attributes:
        round: of the run.
        name: the messages' type.
        sizes: bytes of each message, by node.
        started: when they were sent, by the monotonic clock.
    """

    round: int
    name: str
    sizes: Mapping[int, int]
    started: float


class ReplyStream(Iterator[Message]):
    """Good replies as they arrive; a reply that was handed out is not kept.

    Attributes:
        waited: seconds that were spent in here so far, and not on what the replies say.
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
    """Sends phases and writes messages.jsonl. Failed, late and repeated replies are counted, not
    trusted.

    Attributes:
        names: of registered clients by node.
        absent: clients of a run that was interrupted which have not registered again.
    """

    def __init__(self, grid: Grid, run: RunWriter, timeout: float) -> None:
        self._grid = grid
        self._run = run
        self._timeout = timeout
        self.names: dict[int, str] = {}
        self.absent: set[str] = set()

    def name(self, node_id: int) -> str:
        """The name of a node's client; the node id until it has registered."""
        return self.names.get(node_id, str(node_id))

    def send_and_receive(
        self,
        server_round: int,
        messages: Iterable[Message],
        meanwhile: Callable[[], None] | None = None,
        minimum: int = 0,
    ) -> list[Message]:
        """Send messages, wait for the replies, return those without an error, by client name.

        Args:
            server_round: of the run, for messages.jsonl.
            messages: at most one per node.
            meanwhile: work for the server while the clients are busy.
            minimum: good replies without which the run is given up.

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
        """Send messages at once; the replies without an error come one by one, as they arrive.

        Args:
            server_round: of the run, for messages.jsonl.
            messages: at most one per node.
            on_reply: called with each good reply before it is written down: it may name its sender.
            minimum: good replies without which the run is given up, at the end of the phase.
        """
        asked = list(messages)
        if not asked:
            return ReplyStream(iter(()))
        there = set(self._grid.get_node_ids())
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

    def refuse(self, server_round: int, phase: str, node_id: int, error: Exception) -> None:
        """Note that a reply's content was no good."""
        client = self.name(node_id)
        log.warning("%s of client %s refused: %s", phase, client, error, extra={"client": client})
        self._run.message(server_round, phase, self.name(node_id), error=f"refused: {error}")

    def _receive(
        self,
        phase: SentPhase,
        waiting: Iterable[str],
        on_reply: Callable[[Message], None] | None,
        minimum: int,
    ) -> Iterator[Message]:
        """The good ones of the replies to the messages with the ids ``waiting``."""
        missing, left = set(phase.sizes), dict.fromkeys(waiting)
        good, late = 0, False
        while left and not late:
            # Asked before the replies are: who answers in time is heard, however long the server
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
                time.sleep(POLL_SECONDS)
        for node in sorted(missing, key=self.name):
            self._record(phase, node, None)
        require(good, minimum, phase.name)

    def _pull(self, left: dict[str, None]) -> Iterator[Message]:
        """What there is of the replies to the message ids in ``left``, which shrinks by them."""
        asked = list(left)
        for start in range(0, len(asked), BATCH):
            batch = deque(self._grid.pull_messages(asked[start : start + BATCH]))
            while batch:
                reply = batch.popleft()
                left.pop(reply.metadata.reply_to_message_id, None)
                yield reply

    def _record(self, phase: SentPhase, node: int, reply: Message | None) -> bool:
        """Write the line of messages.jsonl; whether the reply can be used."""
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
        """Write the line of messages.jsonl of a request without a good reply."""
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
    """The line of a reason that says what happened, without what Flower puts around it."""
    lines = [line.strip() for line in (reason or "").removesuffix("'>").splitlines()]
    lines = [line.removeprefix(_FLOWERS_WORDS) for line in lines if line]
    telling = [line for line in lines if "Error" in line]
    return (telling or lines or ["the client failed"])[-1][:500]


def require(answered: int, minimum: int, phase: str) -> None:
    """Stop a run that has too few clients left.

    Raises:
        FedfuseError: naming the phase and both numbers.
    """
    if answered < minimum:
        raise FedfuseError(
            f"{phase}: expected replies of at least {minimum} clients (min-clients), got {answered}"
        )

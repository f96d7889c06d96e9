"""A message is a list of phases: one, or with ``piggyback`` all until the clients must be heard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, RecordDict

from fedfuse.errors import FedfuseError
from fedfuse.flower.messages import RequestContext, pack_context
from fedfuse.flower.piggyback import JOINT, join, split
from strategies.message_round import Exchange, ReplyStream


@dataclass(frozen=True, slots=True)
class Step:
    """One phase of one round.

    Attributes:
        round: that it belongs to.
        requests: at most one per node.
        take: what becomes of the replies.
        meanwhile: work for the server while the clients are busy.
        minimum: good replies without which the run is given up.
    """

    round: int
    requests: Sequence[Message]
    take: Callable[[ReplyStream], None]
    meanwhile: Callable[[], None] | None = None
    minimum: int = 0


def carry_out(steps: Sequence[Step], exchange: Exchange, joint: RequestContext | None) -> None:
    """Ask for phases, each client in one message, and hand out the replies.

    Args:
        steps: in the order in which a client is to do them. Replies to the last are handed out as
            they arrive; replies to the others when all have arrived, in the order of the steps,
            before the last sees the end of its own.
        exchange: to send through.
        joint: what the message belongs to, other than its phases; None where it is its one phase.

    Raises:
        FedfuseError: when too few clients answer.
    """
    last = steps[-1]
    requests = _joined(steps, joint) if joint else last.requests
    minimum = max(step.minimum for step in steps)
    arrivals = exchange.stream(last.round, requests, minimum=minimum)
    for step in steps:
        if step.meanwhile:
            step.meanwhile()
    last.take(ReplyStream(_handed_out(steps, exchange, arrivals)) if joint else arrivals)


def _joined(steps: Sequence[Step], request_context: RequestContext) -> list[Message]:
    """A message for each node that anything is asked of."""
    parts: dict[int, dict[str, RecordDict]] = {}
    for step in steps:
        for request in step.requests:
            asked = parts.setdefault(request.metadata.dst_node_id, {})
            asked[request.metadata.message_type] = request.content
    config = ConfigRecord()
    pack_context(config, request_context)
    return [
        Message(RecordDict({**join(asked), "config": config}), node, JOINT)
        for node, asked in parts.items()
    ]


def _handed_out(
    steps: Sequence[Step], exchange: Exchange, replies: Iterable[Message]
) -> Iterator[Message]:
    """The replies to the last step; at their end, the others take theirs."""
    asked = [{request.metadata.dst_node_id: request for request in s.requests} for s in steps]
    *early, last = steps
    heard: list[list[Message]] = [[] for _ in early]
    for reply in replies:
        node = reply.metadata.src_node_id
        try:
            parts = split(reply.content)
        except FedfuseError as error:
            exchange.refuse(last.round, JOINT, node, error)
            continue
        # A part that is missing has no content, which whoever reads it refuses.
        answers = [
            Message(
                parts.get(requests[node].metadata.message_type, RecordDict()),
                reply_to=requests[node],
            )
            if node in requests
            else None
            for requests in asked
        ]
        for answer, mine in zip(answers, heard, strict=False):
            if answer:
                mine.append(answer)
        if answers[-1]:
            yield answers[-1]
    for step, mine in zip(early, heard, strict=True):
        step.take(ReplyStream(iter(mine)))

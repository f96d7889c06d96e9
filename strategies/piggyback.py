"""One message a round: what follows an aggregation goes along with the next request to train."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from flwr.app import ConfigRecord, Message, RecordDict

from fedfuse.errors import FedfuseError
from fedfuse.flower.messages import RequestContext, pack_context
from fedfuse.flower.piggyback import JOINT, join, split
from strategies.messenger import Messenger, ReplyStream
from strategies.phases import Phase, PhaseRunner

# A phase and its requests by node.
Asked = tuple[Phase, dict[int, Message]]


class PiggybackRunner(PhaseRunner):
    """Lets phases wait, not configured yet, until one comes whose replies the server needs.

    Hooks are called in the same order as without, and clients do the phases in that order. After
    the last round ``flush`` sends what is left.

    Args:
        messenger: sends the messages.
        request_context: run and round that a joint message belongs to.
    """

    def __init__(
        self, messenger: Messenger, request_context: Callable[[int], RequestContext]
    ) -> None:
        super().__init__(messenger)
        self._request_context = request_context

    def run(self, phase: Phase) -> None:
        """Let a phase wait, or send it with all that wait.

        Raises:
            FedfuseError: when too few clients answer.
        """
        self.waiting.append(phase)
        if phase.needs_replies:
            self.flush(phase.round)

    def flush(self, server_round: int) -> None:
        """Send the phases that wait, each client one message, and aggregate the replies.

        Replies to the last phase are aggregated as they arrive, replies to the others when all have
        arrived, in order, before the last sees the end of its own.

        Args:
            server_round: round that the messages belong to, for clients and messages.jsonl.

        Raises:
            FedfuseError: when too few clients answer.
        """
        phases, self.waiting = self.waiting, []
        asked = [(p, {r.metadata.dst_node_id: r for r in p.configure()}) for p in phases]
        minimum = max(min(phase.minimum, len(requests)) for phase, requests in asked)
        joined = _join_requests([requests for _, requests in asked])
        config = ConfigRecord()
        pack_context(config, self._request_context(server_round))
        messages = [
            Message(RecordDict({**join(parts), "config": config}), node, JOINT)
            for node, parts in joined.items()
        ]
        replies = self.messenger.stream(phases[-1].round, messages, minimum=minimum)
        for phase in phases:
            phase.meanwhile()
        phases[-1].aggregate(ReplyStream(self._split_replies(asked, replies)))

    def is_due(self, server_round: int) -> bool:
        """Whether a checkpoint is to be written: round 0 waits for round 1."""
        return server_round > 0

    def _split_replies(
        self, asked: Sequence[Asked], replies: Iterable[Message]
    ) -> Iterator[Message]:
        """The replies to the last phase; at their end, the others aggregate theirs."""
        *early, (last, _) = asked
        collected: list[list[Message]] = [[] for _ in early]
        for reply in replies:
            node = reply.metadata.src_node_id
            try:
                parts = split(reply.content)
            except FedfuseError as error:
                self.messenger.refuse(last.round, JOINT, self.messenger.name(node), error)
                continue
            # A part that is missing has no content, which the phase refuses.
            answers = [
                Message(
                    parts.get(requests[node].metadata.message_type, RecordDict()),
                    reply_to=requests[node],
                )
                if node in requests
                else None
                for _, requests in asked
            ]
            for answer, of_phase in zip(answers, collected, strict=False):
                if answer:
                    of_phase.append(answer)
            if answers[-1]:
                yield answers[-1]
        for (phase, _), of_phase in zip(early, collected, strict=True):
            phase.aggregate(ReplyStream(iter(of_phase)))


def _join_requests(
    phases: Iterable[dict[int, Message]],
) -> dict[int, dict[str, RecordDict]]:
    """Contents by node and phase name, for each node that anything is asked of."""
    parts: dict[int, dict[str, RecordDict]] = {}
    for requests in phases:
        for node, request in requests.items():
            parts.setdefault(node, {})[request.metadata.message_type] = request.content
    return parts

"""Registers clients when they appear, and recognises those that return."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import partial
from operator import itemgetter

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedfuse.errors import FedfuseError
from fedfuse.flower import messages
from fedfuse.tracking.run import SERVER
from fedfuse.tracking.run_writer import RunWriter
from strategies.messenger import Messenger


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """A client as it registers.

    Attributes:
        client: name, the number of its partition.
        model: base model or black box.
        name: display name in reports.
        domain: domain of most of its private data; empty where there is none.
        adapter: what its adapter covers, in words; empty where it has none.
        learns: whether its model can be trained.
    """

    client: str
    model: str
    name: str
    domain: str = ""
    adapter: str = ""
    learns: bool = True


@dataclass(frozen=True, slots=True)
class ResumeInfo:
    """State that a client has of the run already.

    Attributes:
        round: round of its state; -1 for a client that begins anew.
        damaged: parts of its state that it could not read.
    """

    round: int
    damaged: list[str]


class ClientRegistry:
    """Registers nodes.

    Args:
        run: run folder.
        registration_request: makes the content of a request to register.
        parse_registration: parses a reply; raises for a client that cannot take part.
    """

    def __init__(
        self,
        run: RunWriter,
        registration_request: Callable[[], RecordDict],
        parse_registration: Callable[[Message], ClientInfo],
    ) -> None:
        self._run = run
        self._registration_request = registration_request
        self._parse_registration = parse_registration
        self._before = {name for name in run.models if name != SERVER}
        self._answered: set[int] = set()
        self._called = False

    def register(self, grid: Grid, messenger: Messenger, after: int) -> None:
        """Ask the nodes that have not answered yet to register.

        Args:
            grid: Flower's, with the nodes.
            messenger: gets their names.
            after: last round that is over, -1 for none; clients restore their state of it.
        """
        there = set(grid.get_node_ids())
        unanswered = sorted(there - self._answered)
        if len(there) > self._run.nodes:
            self._run.describe(nodes=len(there))
        if unanswered:
            config = ConfigRecord({"after": after})
            request_context = messages.RequestContext(
                self._run.folder.name, self._run.id, max(after, 0)
            )
            messages.pack_context(config, request_context)
            content = RecordDict({**self._registration_request(), "config": config})
            requests = [Message(content, node, messages.REGISTER) for node in unanswered]
            on_reply = partial(self._register, messenger, there, after)
            deque(messenger.stream(request_context.round, requests, on_reply=on_reply), maxlen=0)
        messenger.absent = self._before - set(messenger.names.values())
        self._called = True

    def _register(self, messenger: Messenger, there: Set[int], after: int, reply: Message) -> None:
        """Register the client of a node, or refuse it."""
        node = reply.metadata.src_node_id
        self._answered.add(node)
        try:
            info = self._parse_registration(reply)
            resume_info = parse_resume_info(reply.content)
            known_nodes = [n for n, name in messenger.names.items() if name == info.client]
            if set(known_nodes) & there:
                # Flower lists a machine that was killed for a minute: ask its next node again.
                self._answered.remove(node)
                raise FedfuseError(f"partition {info.client} is taken by another client")
        except (FedfuseError, KeyError, TypeError, ValueError) as error:
            messenger.refuse(max(after, 0), messages.REGISTER, messenger.name(node), error)
            return
        for gone in known_nodes:  # the client's machine was restarted, as another node
            del messenger.names[gone]
        # By name: the order of requests must not depend on who registered first.
        names = {**messenger.names, node: info.client}
        messenger.names = dict(sorted(names.items(), key=itemgetter(1)))
        self._record(info, resume_info, after)

    def _record(self, info: ClientInfo, resume_info: ResumeInfo, after: int) -> None:
        client, run = info.client, self._run
        run.add(
            models={client: info.model},
            names={client: info.name},
            own_domain={client: info.domain},
            adapters={client: info.adapter} if info.adapter else {},
        )
        known, self._before = client in self._before, {*self._before, client}
        for error in resume_info.damaged:
            run.event(max(after, 0), "damaged", client, error)
        if after < 0 or (resume_info.round == after and not self._called):
            return  # the run begins, or goes on with all of its state
        if resume_info.round < 0:
            run.event(after, "lost" if known else "joined", client, "begins anew")
        else:
            run.event(after, "returned", client, f"with its state of round {resume_info.round}")


def parse_resume_info(content: RecordDict) -> ResumeInfo:
    """Parse which state a client has of the run.

    Raises:
        KeyError, TypeError, ValueError: for another kind of content.
    """
    info = content.config_records["info"]
    damaged = info.get("damaged", [])
    return ResumeInfo(
        round=int(info.get("state-round", -1)),  # type: ignore[arg-type]
        damaged=[str(error) for error in damaged] if isinstance(damaged, list) else [],
    )

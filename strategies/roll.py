"""Who takes part: clients are registered when they appear, and known again when they return."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Set
from dataclasses import dataclass
from functools import partial
from operator import itemgetter

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedfuse.errors import FedfuseError
from fedfuse.flower import messages
from fedfuse.tokenization.tokenizer import TextTokenizer
from strategies.exchange import Exchange
from strategies.session import SERVER, Session

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Arrival:
    """What a client says of itself.

    Attributes:
        client: its name: the number of its partition.
        model: its base model.
        domain: most of its private data is of this one; empty where there is none.
        remembers: the round that its state is of; -1 for a client that begins anew.
        damaged: what it could not read of its state.
    """

    client: str
    model: str
    domain: str
    remembers: int
    damaged: list[str]


class Roll:
    """Registers nodes, and keeps their tokenizers.

    Attributes:
        tokenizers: of the clients, by node.
    """

    def __init__(self, session: Session) -> None:
        self.tokenizers: dict[int, TextTokenizer] = {}
        self._session = session
        self._before = {name for name in session.run.models if name != SERVER}
        self._answered: set[int] = set()
        self._called = False

    def call(self, grid: Grid, exchange: Exchange, after: int) -> None:
        """Tell the nodes that were not heard yet the server's tokenizer, and ask who they are.

        Args:
            grid: with the nodes.
            exchange: gets their names.
            after: the last round that is over, -1 for none: a client's state goes back to it.
        """
        there = set(grid.get_node_ids())
        unheard, run = sorted(there - self._answered), self._session.run
        if len(there) > run.nodes:
            run.describe(nodes=len(there))
        if unheard:
            config = ConfigRecord({"after": after})
            occasion = messages.Occasion(run.folder.name, run.id, max(after, 0))
            messages.put_occasion(config, occasion)
            greeting = RecordDict({"config": config})
            messages.put_tokenizer(greeting, self._session.participant.tokenizer)
            requests = [Message(greeting, node, messages.REGISTER) for node in unheard]
            greet = partial(self._greet, exchange, there, after)
            deque(exchange.stream(occasion.round, requests, greet=greet), maxlen=0)
        self._called = True

    def _greet(self, exchange: Exchange, there: Set[int], after: int, reply: Message) -> None:
        """Give a node its client's name."""
        node = reply.metadata.src_node_id
        self._answered.add(node)
        try:
            tokenizer = messages.take_tokenizer(reply.content)
            arrival = read_arrival(reply.content)
            held = [n for n, name in exchange.names.items() if name == arrival.client]
            if set(held) & there:
                raise FedfuseError(f"partition {arrival.client} is taken by another client")
        except (FedfuseError, KeyError, TypeError, ValueError) as error:
            exchange.refuse(max(after, 0), messages.REGISTER, node, error)
            return
        for gone in held:  # The client's machine was started again, as another node.
            del exchange.names[gone], self.tokenizers[gone]
        # Clients of one model share one tokenizer.
        same = (t for t in self.tokenizers.values() if t.fingerprint == tokenizer.fingerprint)
        self.tokenizers[node] = next(same, tokenizer)
        # By name: in which order clients are asked is no matter of who was quicker to register.
        names = {**exchange.names, node: arrival.client}
        exchange.names = dict(sorted(names.items(), key=itemgetter(1)))
        self._write_down(arrival, after)

    def _write_down(self, arrival: Arrival, after: int) -> None:
        client, run = arrival.client, self._session.run
        label = arrival.model.rsplit("/", 1)[-1].removeprefix("builtin:")
        run.add(
            models={client: arrival.model},
            names={client: f"{arrival.domain or client} / {label}"},
            own_domain={client: arrival.domain},
        )
        known, self._before = client in self._before, {*self._before, client}
        for error in arrival.damaged:
            run.event(max(after, 0), "damaged", client, error)
        if after < 0 or (arrival.remembers == after and not self._called):
            return  # The run begins, or goes on as if nothing had happened.
        if arrival.remembers < 0:
            run.event(after, "lost" if known else "joined", client, "begins with a new adapter")
        else:
            run.event(after, "returned", client, f"with its state of round {arrival.remembers}")


def read_arrival(content: RecordDict) -> Arrival:
    """Read what a client says of itself.

    Raises:
        KeyError, TypeError, ValueError: for what it does not say.
    """
    info = content.config_records["info"]
    damaged = info.get("damaged", [])
    return Arrival(
        client=str(int(info["partition"])),  # type: ignore[arg-type]
        model=str(info["model"]),
        domain=str(info["own-domain"]),
        remembers=int(info.get("remembers", -1)),  # type: ignore[arg-type]
        damaged=[str(error) for error in damaged] if isinstance(damaged, list) else [],
    )

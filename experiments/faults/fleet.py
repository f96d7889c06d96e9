"""An in-process grid whose clients fail by a schedule, and whose server is killed by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import NoReturn
from unittest.mock import patch

import numpy as np
import torch
from flwr.app import Array, Context, Message
from flwr.clientapp import ClientApp

from fedfuse.config.run_config import Scalar
from fedfuse.distillation.training import Training
from fedfuse.flower import messages
from fedfuse.flower.piggyback import JOINT
from fedfuse.simulation.in_process import InProcessGrid

PHASES = (messages.LOCAL, messages.DISTILL, messages.EVALUATE)
# What a client does with one message. ``raise`` and ``hang`` do nothing else. ``late`` and ``die``
# do all that is asked, but the reply comes after the deadline, or never, and what ``die`` had in
# memory is lost. ``memory`` runs out of it while training. ``stale`` is the reply of an earlier
# round, ``damaged`` has a bit of knowledge turned over.
FAULTS = ("raise", "hang", "late", "die", "twice", "memory", "stale", "damaged")

# Round, phase, client.
Place = tuple[int, str, int]


class Killed(BaseException):
    """The server's process ends."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """What goes wrong, and when."""

    faults: Mapping[Place, str]  # of clients
    away: Mapping[int, frozenset[int]]  # rounds without a client's connection; 0: registration
    kills: tuple[tuple[int, str], ...] = ()  # of the server: before whose messages


def draw(seed: int, clients: int, rounds: int) -> Schedule:
    """A schedule at random in which one client is always well."""
    rng = np.random.default_rng(seed)
    steady = int(rng.integers(clients))
    faults: dict[Place, str] = {}
    away: dict[int, frozenset[int]] = {}
    for client in range(clients):
        if client == steady:
            continue
        if rng.random() < 0.4:
            start, length = int(rng.integers(rounds + 1)), int(rng.integers(1, rounds + 1))
            away[client] = frozenset(range(start, start + length))
        if rng.random() < 0.2:
            faults[0, messages.REGISTER, client] = str(rng.choice(["raise", "hang", "late"]))
        for number in range(rounds + 1):
            for phase in PHASES if number else PHASES[2:]:
                if rng.random() < 0.3:
                    faults[number, phase, client] = str(rng.choice(FAULTS))
    kills = [(int(rng.integers(1, rounds + 1)), str(rng.choice(PHASES))) for _ in range(2)]
    return Schedule(faults, away, tuple(kills[: int(rng.integers(3))]))


class Fleet(InProcessGrid):
    """A grid that keeps to a schedule, and its own account of what was asked and answered.

    ``first`` is the round that the run begins with, or goes on with.

    Attributes:
        asked: messages that were sent, by place.
        delivered: what was wrong with each reply that was handed to the server; "" for nothing.
    """

    def __init__(
        self,
        schedule: Schedule,
        client_app: ClientApp,
        node_configs: Sequence[Mapping[str, Scalar]],
        run_config: Mapping[str, Scalar],
        first: int = 0,
    ) -> None:
        super().__init__(client_app, node_configs, run_config)
        self._schedule, self._round = schedule, first
        self._client = dict(zip(self._contexts, range(len(node_configs)), strict=True))
        self._fresh = dict(self._contexts)
        self._told: dict[tuple[str, int], Message] = {}
        self.asked: Counter[Place] = Counter()
        self.delivered: dict[Place, str] = {}

    def get_node_ids(self) -> list[int]:
        """The nodes that are connected in this round."""
        away, nodes = self._schedule.away, super().get_node_ids()
        return [node for node in nodes if self._round not in away.get(self._client[node], ())]

    def push_messages(self, messages_: Iterable[Message]) -> list[str]:
        """Send, unless the server is killed before."""
        sent = list(messages_)
        places = [self._place(message) for message in sent]
        for number, phase, _ in places:
            if (number, phase) in self._schedule.kills:
                raise Killed(number, phase)
            if phase in (messages.EVALUATE, JOINT):
                self._round = number + 1
        self.asked.update(places)
        return super().push_messages(sent)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that the schedule lets through."""
        replies: list[Message] = []
        for message_id in message_ids:
            if message_id not in self._waiting:
                continue
            place = self._place(self._waiting[message_id])
            fault = self._schedule.faults.get(place, "")
            if reply := self._suffer(fault, place, message_id):
                self.delivered[place] = fault
                replies += [reply] * (2 if fault == "twice" else 1)
        return replies

    def _suffer(self, fault: str, place: Place, message_id: str) -> Message | None:
        """What comes of a message."""
        _, phase, client = place
        node = self._waiting[message_id].metadata.dst_node_id
        if fault == "hang":
            del self._waiting[message_id]
            return None
        app = _raise if fault == "raise" else self._client_app
        memory = out_of_memory_once() if fault == "memory" else nullcontext()
        with patch.object(self, "_client_app", app), memory:
            replies = super().pull_messages([message_id])
        if not replies:
            return None
        [reply] = replies
        if fault == "die":
            self._contexts[node] = self._fresh[node]
        if fault in ("late", "die"):
            return None
        if fault == "stale" and (before := self._told.get((phase, client))):
            reply.content.clear()
            reply.content.update(before.content)
        elif fault == "damaged" and phase == messages.LOCAL:
            knowledge = reply.content.array_records["knowledge"]
            bits = knowledge["message"].numpy().copy()
            bits[len(bits) // 2] ^= 1
            knowledge["message"] = Array(bits)
        elif not reply.has_error():
            self._told[phase, client] = reply
        return reply

    def _place(self, message: Message) -> Place:
        number = messages.unpack_context(message.content).round
        return number, message.metadata.message_type, self._client[message.metadata.dst_node_id]


@contextmanager
def out_of_memory_once() -> Iterator[None]:
    """The next training step finds no memory, as it is; in smaller parts it does."""
    attempts = iter([True])
    backward = Training._backward

    def once(self: Training) -> float:
        if next(attempts, False):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return backward(self)

    with patch.object(Training, "_backward", once):
        yield


def _raise(message: Message, context: Context) -> NoReturn:
    raise RuntimeError("the power failed")

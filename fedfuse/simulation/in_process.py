"""Flower's grid without Ray or a SuperLink: the same two apps, one after the other, in one process.

``InProcessGrid`` hands each message of a ServerApp to the ClientApp at once and returns its reply:
for tests, debuggers and small runs, since it starts in milliseconds. An app that works here should
work over a network too, so messages, replies and ``Context.state`` pass through Flower's own wire
format each time, and clients that fail are treated as Flower treats them.

Differs from Flower: messages are handled one at a time, in the order of sending; a message that
the deadline keeps from its client is dropped, where Flower would still deliver it later; a client
whose handler returns no message leaves no reply at once, where Flower waits for the timeout.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import cast

from flwr.app import Context, Error, Message, RecordDict, UserConfig, UserConfigValue
from flwr.clientapp import ClientApp
from flwr.clientapp.client_app import ClientAppException
from flwr.common.constant import NUM_PARTITIONS_KEY, PARTITION_ID_KEY, SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import context_from_proto, context_to_proto, message_to_proto
from flwr.proto.message_pb2 import Context as ProtoContext
from flwr.server.utils.validator import validate_message
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedfuse.errors import check
from fedfuse.flower.app_bundle import check_scalars

logger = logging.getLogger(__name__)

_run_ids = count(1)


def message_bytes(message: Message) -> int:
    """Size of a message on the wire, in bytes: the protobuf of its content or error."""
    proto = message_to_proto(message)
    return int((proto.content if message.has_content() else proto.error).ByteSize())


class InProcessGrid(Grid):
    """A grid whose nodes all live in this process and share one ClientApp.

    Node ids are large, the same in every run, and say nothing about partition ids, as in Flower.
    Each grid is a run of its own: the messages made after it and before the next grid are its own.

    Args:
        client_app: ClientApp of every node.
        node_configs: node config of each node; gives the number of nodes.
        run_config: run config of every node: flat, dotted keys, scalars.

    Raises:
        FedfuseError: when a config holds anything but bool, int, float and str.
    """

    def __init__(
        self,
        client_app: ClientApp,
        node_configs: Sequence[Mapping[str, UserConfigValue]],
        run_config: Mapping[str, UserConfigValue],
    ) -> None:
        self._client_app = client_app
        self._run = Run.create_empty(run_id=next(_run_ids))
        # Message() stamps new messages with the identity of the process.
        TaskIdentity.task_id = 1
        TaskIdentity.run_id = self._run.run_id
        TaskIdentity.node_id = SUPERLINK_NODE_ID
        # Contexts are kept as bytes: a client that fails loses its changes of them, as in Flower.
        self._contexts: dict[int, bytes] = {}
        for number, node_config in enumerate(node_configs):
            node_id = int.from_bytes(hashlib.sha256(b"node %d" % number).digest()[:8], "little")
            context = new_context(self._run.run_id, node_id, node_config, run_config)
            self._contexts[node_id] = _pack(context)
        self._waiting: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Copy the description of a run; the grid's run id stays."""
        self._run = Run(**{**vars(run), "run_id": self._run.run_id})

    @property
    def run(self) -> Run:
        """A copy of the run's description."""
        return Run(**vars(self._run))

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message; deprecated in Flower in favour of ``Message``."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Ids of all nodes, ascending: an order that has nothing to do with partition ids."""
        return sorted(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Stamp messages with ids and keep them until their replies are pulled.

        Returns:
            Ids of those with a valid form and a known node; the others are dropped.

        Raises:
            FedfuseError: for a message that was made for another grid.
        """
        ids = []
        for message in messages:
            run, own = message.metadata.run_id, self._run.run_id
            expected = f"run {own}: make a message after its own grid and before the next"
            check("run of the message", run, expected, run == own)
            sent = _through_the_wire(message)
            faults = validate_message(sent, is_reply_message=False)
            if sent.metadata.dst_node_id not in self._contexts:
                faults.append(f"no node has the id {sent.metadata.dst_node_id}")
            if faults:
                logger.error("Message dropped: %s", "; ".join(faults))
                continue
            self._waiting[sent.metadata.message_id] = sent
            ids.append(sent.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Run the ClientApp on each waiting message and return the replies, each once."""
        answers = (self._answer(self._waiting.pop(i)) for i in message_ids if i in self._waiting)
        return [reply for reply in answers if reply is not None]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send messages and return the replies that came in time.

        Args:
            messages: messages, whose ids are set, so that replies can be matched to them.
            timeout: seconds for all messages together; a client at work is never interrupted, but
                a reply after the deadline is lost, and no further message reaches its client.
        """
        ids = self.push_messages(messages)
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        for message_id in ids:
            if time.monotonic() >= deadline:
                del self._waiting[message_id]
                continue
            replies_of_one = self.pull_messages([message_id])
            if time.monotonic() < deadline:
                replies += replies_of_one
        return replies

    def _answer(self, message: Message) -> Message | None:
        """A client's reply: its handler's, an error, or none."""
        node_id = message.metadata.dst_node_id
        try:
            reply = self._call(message, node_id)
        except Exception as error:  # What a client raises is its own failure, not the run's.
            logger.error(
                "Node %s failed at %s", node_id, message.metadata.message_type, exc_info=error
            )
            code = ErrorCode.UNKNOWN
            if isinstance(error, ClientAppException):
                code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            reason = f"{type(error)}:<'{error}'>"
            return _through_the_wire(Message(Error(code=code, reason=reason), reply_to=message))
        if reply is None:
            logger.error("Node %s returned no message", node_id)
            return None
        faults = validate_message(reply, is_reply_message=True)
        if reply.metadata.reply_to_message_id != message.metadata.message_id:
            faults.append("it answers another message")
        if reply.metadata.src_node_id != node_id:
            faults.append("it names another node as its source")
        if faults:
            logger.error("Reply of node %s dropped: %s", node_id, "; ".join(faults))
            return None
        return reply

    def _call(self, message: Message, node_id: int) -> Message | None:
        """Run the ClientApp on a copy of the node's context; keep the copy if all went well."""
        context = _unpack(self._contexts[node_id])
        run_config = dict(context.run_config)
        try:
            returned: object = self._client_app(message, context)
            # What cannot be sent or kept is a failure of the client too.
            reply = _through_the_wire(returned) if isinstance(returned, Message) else None
            packed = _pack(context)
        except Exception as error:
            raise ClientAppException(str(error)) from error
        if context.run_config != run_config:
            raise ValueError("The `run_config` field of the `Context` object cannot be modified")
        self._contexts[node_id] = packed
        return reply


def run_in_process(
    server_app: ServerApp,
    client_app: ClientApp,
    run_config: Mapping[str, UserConfigValue],
    num_clients: int,
    node_configs: Sequence[Mapping[str, UserConfigValue]] = (),
) -> None:
    """Run a ServerApp against clients in this process; an error of the ServerApp is raised here.

    Args:
        server_app: ServerApp to run.
        client_app: ClientApp of every node.
        run_config: whole run config, defaults included: flat, dotted keys, scalars.
        num_clients: number of nodes; node i has partition-id i and num-partitions as in simulation.
        node_configs: further entries for the node config of each node; none, or one mapping a node.

    Raises:
        FedfuseError: for no clients, another number of node configs, or values that are no scalars.
    """
    check("num_clients", num_clients, "at least 1", num_clients >= 1)
    number = len(node_configs)
    check("node_configs", number, f"none or {num_clients}", number in (0, num_clients))
    nodes: list[UserConfig] = [
        {PARTITION_ID_KEY: number, NUM_PARTITIONS_KEY: num_clients, **more}
        for number, more in enumerate(node_configs or [{}] * num_clients)
    ]
    grid = InProcessGrid(client_app, nodes, run_config)
    server_app(grid, new_context(grid.run.run_id, SUPERLINK_NODE_ID, {}, run_config))


def new_context(
    run_id: int,
    node_id: int,
    node_config: Mapping[str, UserConfigValue],
    run_config: Mapping[str, UserConfigValue],
) -> Context:
    """A context with an empty state and its own copies of the configs.

    Raises:
        FedfuseError: when a config holds anything but bool, int, float and str.
    """
    check_scalars("node config", node_config)
    check_scalars("run config", run_config)
    return Context(
        run_id=run_id,
        node_id=node_id,
        node_config=dict(node_config),
        state=RecordDict(),
        run_config=dict(run_config),
    )


def _pack(context: Context) -> bytes:
    return bytes(context_to_proto(context).SerializeToString())


def _unpack(packed: bytes) -> Context:
    return context_from_proto(ProtoContext.FromString(packed))


def _through_the_wire(message: Message) -> Message:
    """Give a message its id, take it apart as Flower sends it, and build a copy from that."""
    with no_object_id_recompute():
        message_id = message.object_id
        objects = get_all_nested_objects(message)
        contents = {object_id: item.deflate() for object_id, item in objects.items()}
    arrived = cast(Message, inflate_object_from_contents(message_id, contents))
    for copy in (message, arrived):
        copy.metadata.__dict__["_message_id"] = message_id
    return arrived

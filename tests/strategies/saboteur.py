"""A ClientApp like the real one, in which some clients do what they should not."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients import app as honest

# What a client does: the request's kind and the honest reply come in, its own reply goes out.
Deed = Callable[[str, Message], None]


def sabotage(deeds: Mapping[int, Deed], partition_of: Mapping[int, int] | None = None) -> ClientApp:
    """The app whose clients, by partition, change their replies, or raise instead.

    Args:
        deeds: what the clients of these partitions do to each reply before it is sent.
        partition_of: clients that pretend to have another partition.
    """
    app = ClientApp()
    handlers = {
        "query.register": app.query("register"),
        "train.local": app.train("local"),
        "train.distill": app.train("distill"),
        "train.joint": app.train("joint"),
        "train.baseline": app.train("baseline"),
        "evaluate": app.evaluate(),
    }
    for kind, register in handlers.items():
        register(_wrap(kind, deeds, partition_of or {}))
    return app


def _wrap(
    kind: str,
    deeds: Mapping[int, Deed],
    partition_of: Mapping[int, int],
) -> Callable[[Message, Context], Message]:
    def handle(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        context.node_config["partition-id"] = partition_of.get(partition, partition)
        reply = honest.answer(message, context)
        if partition in deeds:
            deeds[partition](kind, reply)
        return reply

    return handle

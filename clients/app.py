"""The ClientApp: the kind of client that the run config names answers each message.

A built-in kind has a name; one of your own is ``module:Class``, a module that the machine's owner
installed or that belongs to the app. No message brings a name or code.
"""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.base import BaseClient
from fedfuse.config.run_config import RunConfig, parse
from fedfuse.errors import FedfuseError
from fedfuse.flower.messages import (
    BASELINE,
    DISTILL,
    EVALUATE,
    LOCAL,
    REGISTER,
    pack_round,
    unpack_context,
)
from fedfuse.flower.piggyback import JOINT, join, split
from fedfuse.models.allocator import keep_freed_memory
from fedfuse.plugins import load_class

app = ClientApp()
# Imported when they are named, as strategies are.
CLIENTS = {
    "knowledge": "clients.knowledge:KnowledgeClient",
    "feddtpt": "clients.feddtpt:FedDTPTClient",
}
METHODS = {
    REGISTER: "register",
    LOCAL: "train",
    DISTILL: "distill",
    EVALUATE: "evaluate",
    BASELINE: "measure_baselines",
}


def find_client(name: str) -> type[BaseClient]:
    """A built-in kind of client, or your own class as ``module:Class``.

    Raises:
        FedfuseError: when there is none of that name, or it is no subclass of ``BaseClient``.
    """
    return load_class("client", name, CLIENTS, BaseClient)


def client_name(config: RunConfig) -> str:
    """Name of the run config's kind of client; by default the kind that answers its strategy."""
    answering = (name for name in CLIENTS if config.strategy in find_client(name).strategies)
    return config.client or next(answering, "knowledge")


@app.query("register")
@app.train("local")
@app.train("distill")
@app.train("baseline")
@app.train("joint")
@app.evaluate()
def answer(message: Message, context: Context) -> Message:
    """Do what a message asks for, one phase or several, one after the other."""
    keep_freed_memory()
    kind, content = message.metadata.message_type, message.content
    requests: Mapping[str, RecordDict] = split(content) if kind == JOINT else {kind: content}
    if not set(requests) <= set(METHODS):
        raise FedfuseError(f"phases: expected some of {', '.join(METHODS)}, got {list(requests)}")
    config = parse(context.run_config)
    client = find_client(client_name(config))(context, content)
    answers = {}
    for phase, request in requests.items():
        answers[phase] = getattr(client, METHODS[phase])(request)
        pack_round(answers[phase], unpack_context(request).round)
    client.save()
    return Message(join(answers) if kind == JOINT else answers[kind], reply_to=message)

"""The ClientApp: which message is answered by what.

A strategy that tunes prompts sends one with every message, any other none: so the strategy that the
run config names, which a client cannot import, decides which kind of client answers.
"""

from __future__ import annotations

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.baselines import train_baselines
from clients.distillation import DistillationClient
from clients.prompts import PromptClient
from fedfuse.flower.messages import put_round
from fedfuse.flower.prompt_messages import PROMPT

app = ClientApp()
FederatedClient = PromptClient | DistillationClient


@app.query("register")
def register(message: Message, context: Context) -> Message:
    """Answer who this client is."""
    client = _client(message, context)
    return _reply(message, client, client.register(message.content))


@app.train("local")
def local(message: Message, context: Context) -> Message:
    """Train, or search, on private data."""
    client = _client(message, context)
    return _reply(message, client, client.local(message.content))


@app.train("distill")
def distill(message: Message, context: Context) -> Message:
    """Learn from the server's knowledge."""
    client = DistillationClient(context, message.content)
    return _reply(message, client, client.distill(message.content))


@app.train("baseline")
def baseline(message: Message, context: Context) -> Message:
    """Measure what this client would be without the federation."""
    client = _client(message, context)
    if isinstance(client, PromptClient):
        return _reply(message, client, client.standalone(message.content))
    return _reply(message, client, train_baselines(client))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the model or the prompt."""
    client = _client(message, context)
    return _reply(message, client, client.evaluate(message.content))


def _client(message: Message, context: Context) -> FederatedClient:
    kind = PromptClient if PROMPT in message.content else DistillationClient
    return kind(context, message.content)


def _reply(message: Message, client: FederatedClient, content: RecordDict) -> Message:
    client.memory.keep()
    put_round(content, client.memory.occasion.round)
    return Message(content, reply_to=message)

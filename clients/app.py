"""The ClientApp: which message is answered by what.

A strategy that tunes prompts sends one with every message, any other none: so the strategy that the
run config names, which a client cannot import, decides which kind of client answers.
"""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.baselines import train_baselines
from clients.distillation import DistillationClient
from clients.prompts import PromptClient
from fedfuse.flower.prompt_messages import PROMPT

app = ClientApp()


@app.query("register")
def register(message: Message, context: Context) -> Message:
    """Answer who this client is."""
    return Message(_client(message, context).register(message.content), reply_to=message)


@app.train("local")
def local(message: Message, context: Context) -> Message:
    """Train, or search, on private data."""
    return Message(_client(message, context).local(message.content), reply_to=message)


@app.train("distill")
def distill(message: Message, context: Context) -> Message:
    """Learn from the server's knowledge."""
    return Message(DistillationClient(context).distill(message.content), reply_to=message)


@app.train("baseline")
def baseline(message: Message, context: Context) -> Message:
    """Measure what this client would be without the federation."""
    client = _client(message, context)
    if isinstance(client, PromptClient):
        return Message(client.standalone(message.content), reply_to=message)
    return Message(train_baselines(client), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the model or the prompt."""
    return Message(_client(message, context).evaluate(message.content), reply_to=message)


def _client(message: Message, context: Context) -> PromptClient | DistillationClient:
    return (PromptClient if PROMPT in message.content else DistillationClient)(context)

"""The ClientApp: which message is answered by what."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.baselines import train_baselines
from clients.distillation import DistillationClient
from fedfuse.flower.messages import put_round

app = ClientApp()


@app.query("register")
def register(message: Message, context: Context) -> Message:
    """Answer who this client is."""
    return _answer(message, context, DistillationClient.register)


@app.train("local")
def local(message: Message, context: Context) -> Message:
    """Train on private data."""
    return _answer(message, context, DistillationClient.local)


@app.train("distill")
def distill(message: Message, context: Context) -> Message:
    """Learn from the server's knowledge."""
    return _answer(message, context, DistillationClient.distill)


@app.train("baseline")
def baseline(message: Message, context: Context) -> Message:
    """Measure what this client would be without the federation."""
    return _answer(message, context, lambda client, _: train_baselines(client))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the model on the test set."""
    return _answer(message, context, DistillationClient.evaluate)


def _answer(
    message: Message,
    context: Context,
    handle: Callable[[DistillationClient, RecordDict], RecordDict],
) -> Message:
    client = DistillationClient(context, message.content)
    reply = handle(client, message.content)
    client.memory.keep()
    put_round(reply, client.memory.occasion.round)
    return Message(reply, reply_to=message)

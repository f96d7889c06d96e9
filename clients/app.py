"""The ClientApp: which message is answered by what."""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.baselines import train_baselines
from clients.distillation import DistillationClient

app = ClientApp()


@app.query("register")
def register(message: Message, context: Context) -> Message:
    """Answer who this client is."""
    return Message(DistillationClient(context).register(message.content), reply_to=message)


@app.train("local")
def local(message: Message, context: Context) -> Message:
    """Train on private data."""
    return Message(DistillationClient(context).local(message.content), reply_to=message)


@app.train("distill")
def distill(message: Message, context: Context) -> Message:
    """Learn from the server's knowledge."""
    return Message(DistillationClient(context).distill(message.content), reply_to=message)


@app.train("baseline")
def baseline(message: Message, context: Context) -> Message:
    """Measure what this client would be without the federation."""
    return Message(train_baselines(DistillationClient(context)), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the model on the test set."""
    return Message(DistillationClient(context).evaluate(message.content), reply_to=message)

"""The ClientApp: which message is answered by what.

A strategy that tunes prompts sends one with every request, any other none: so the strategy that the
run config names, which a client cannot import, decides which kind of client answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.baselines import train_baselines
from clients.feddtpt import PromptClient
from clients.knowledge import DistillationClient
from fedfuse.errors import FedfuseError
from fedfuse.flower.feddtpt_messages import PROMPT
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

app = ClientApp()
FederatedClient = PromptClient | DistillationClient


def measure_baselines(client: FederatedClient, request: RecordDict) -> RecordDict:
    """What this client would be without the federation."""
    if isinstance(client, PromptClient):
        return client.standalone(request)
    return train_baselines(client)


PHASES: Mapping[str, Callable[[Any, RecordDict], RecordDict]] = {
    REGISTER: lambda client, request: client.register(request),
    LOCAL: lambda client, request: client.local(request),
    DISTILL: lambda client, request: client.distill(request),
    EVALUATE: lambda client, request: client.evaluate(request),
    BASELINE: measure_baselines,
}


@app.query("register")
@app.train("local")
@app.train("distill")
@app.train("baseline")
@app.train("joint")
@app.evaluate()
def answer(message: Message, context: Context) -> Message:
    """Do what a message asks for, one phase or several, one after the other."""
    kind, content = message.metadata.message_type, message.content
    requests = split(content) if kind == JOINT else {kind: content}
    if not set(requests) <= set(PHASES):
        raise FedfuseError(f"the message asks for {list(requests)}; allowed: {', '.join(PHASES)}")
    tunes = any(PROMPT in request for request in requests.values())
    client = (PromptClient if tunes else DistillationClient)(context, content)
    answers = {}
    for phase, request in requests.items():
        answers[phase] = PHASES[phase](client, request)
        pack_round(answers[phase], unpack_context(request).round)
    client.memory.keep()
    return Message(join(answers) if kind == JOINT else answers[kind], reply_to=message)

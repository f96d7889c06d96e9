"""A small Flower app in a folder: two rounds, three kinds of messages, a failing client."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from tests.processes import traces as traces

PYPROJECT = """
[project]
name = "sums"
version = "1.0.0"
description = "Adds up numbers"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "tests"

[tool.flwr.app.components]
serverapp = "sums_server:app"
clientapp = "sums_client:app"

[tool.flwr.app.config]
clients = 2
out = ""
mode = "run"
plugin = ""
local.factor = 1.0
"""

CLIENT = """
import time

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query("register")
def register(message, context):
    partition = context.node_config["partition-id"]
    sizes = {"partition": partition, "of": context.node_config["num-partitions"]}
    return Message(RecordDict({"sizes": ConfigRecord(sizes)}), reply_to=message)


@app.train("local")
def local(message, context):
    calls = context.state.setdefault("calls", ConfigRecord({"number": 0}))
    calls["number"] += 1
    partition = context.node_config["partition-id"]
    if partition == message.content["task"]["fails"]:
        raise RuntimeError(f"partition {partition} is out of numbers")
    numbers = message.content["numbers"]["0"].numpy()
    numbers = numbers * np.float16(context.run_config["local.factor"]) + np.float16(partition)
    reply = {"numbers": ArrayRecord([numbers]), "calls": ConfigRecord({"number": calls["number"]})}
    return Message(RecordDict(reply), reply_to=message)


@app.evaluate()
def evaluate(message, context):
    time.sleep(600)
"""

SERVER = """
import importlib
import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


def record(reply):
    if reply.has_error():
        return {"error": reply.error.code, "names": "out of numbers" in reply.error.reason}
    numbers = reply.content["numbers"]["0"].numpy()
    number = reply.content["calls"]["number"]
    return {"dtype": str(numbers.dtype), "numbers": numbers.tolist(), "calls": number}


@app.main()
def main(grid, context):
    config = context.run_config
    while len(nodes := list(grid.get_node_ids())) < config["clients"]:
        time.sleep(0.1)  # In simulation the ServerApp is there before the nodes are.
    if config["mode"] == "fail":
        raise RuntimeError("the server gives up")
    asked = [Message(RecordDict(), node, "query.register") for node in nodes]
    answers = list(grid.send_and_receive(asked, timeout=120))
    sources = {message.metadata.message_id: message.metadata.dst_node_id for message in asked}
    partitions = {}
    for answer in answers:
        node = sources[answer.metadata.reply_to_message_id]
        assert node == answer.metadata.src_node_id
        partitions[node] = answer.content["sizes"]["partition"]
    if config["mode"] == "hang":
        Path(config["out"]).write_text("clients are at work")
        grid.send_and_receive([Message(RecordDict(), node, "evaluate") for node in nodes])
    result = {}
    for round in (1, 2):
        content = RecordDict(
            {
                "numbers": ArrayRecord([np.array([1.0, 2.5], np.float16)]),
                "task": ConfigRecord({"fails": 1 if round == 1 else -1}),
            }
        )
        sent = [Message(content, node, "train.local") for node in [*nodes, 12345]]
        replies = grid.send_and_receive(sent, timeout=60)
        result[str(round)] = {partitions[r.metadata.src_node_id]: record(r) for r in replies}
    if config["plugin"]:
        result["plugin"] = importlib.import_module(config["plugin"]).VALUE
    Path(config["out"]).write_text(json.dumps(result, sort_keys=True))
"""


@dataclass(frozen=True)
class Sums:
    """The app: its folder, and its two apps imported from it."""

    folder: Path
    server: ServerApp
    client: ClientApp


@pytest.fixture
def sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sums]:
    """The app in a new folder."""
    folder = tmp_path / "sums"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "sums_client.py").write_text(CLIENT)
    (folder / "sums_server.py").write_text(SERVER)
    monkeypatch.syspath_prepend(folder)
    server, client = (importlib.import_module(name) for name in ("sums_server", "sums_client"))
    yield Sums(folder, server.app, client.app)
    for name in ("sums_server", "sums_client"):
        del sys.modules[name]


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark of the tests that start Ray."""
    config.addinivalue_line("markers", "slow: starts a simulation with Ray; 10 to 40 s")

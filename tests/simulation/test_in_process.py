"""The grid in one process does what Flower does with the same apps."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
    UserConfig,
)
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp

from fedfuse.errors import FedfuseError
from fedfuse.flower.app_bundle import default_run_config
from fedfuse.simulation.in_process import InProcessGrid, message_bytes, new_context, run_in_process
from tests.simulation.conftest import Sums

# 1 and 2.5 times 3, plus the partition; the call of partition 1 that failed is not counted.
EXPECTED = {
    "1": {
        "0": {"calls": 1, "dtype": "float16", "numbers": [3.0, 7.5]},
        "1": {"error": ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "names": True},
    },
    "2": {
        "0": {"calls": 2, "dtype": "float16", "numbers": [3.0, 7.5]},
        "1": {"calls": 1, "dtype": "float16", "numbers": [4.0, 8.5]},
    },
}


def make_grid(client: ClientApp, nodes: int = 2) -> InProcessGrid:
    return InProcessGrid(client, [{"partition-id": i} for i in range(nodes)], {"scale": 1.0})


def echo_app() -> ClientApp:
    app = ClientApp()

    @app.query()
    def echo(message: Message, context: Context) -> Message:
        return Message(message.content, reply_to=message)

    return app


def test_an_app_with_a_strategy_loop_and_a_failing_client(sums: Sums, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    config: UserConfig = default_run_config(sums.folder)
    config |= {"out": str(out), "local.factor": 3.0}
    run_in_process(sums.server, sums.client, config, num_clients=2)
    assert json.loads(out.read_text()) == EXPECTED


def test_what_the_server_raises_is_raised(sums: Sums) -> None:
    with pytest.raises(RuntimeError, match="the server gives up"):
        run_in_process(sums.server, sums.client, {"clients": 2, "mode": "fail"}, num_clients=2)


def test_replies_name_the_message_and_the_nodes() -> None:
    grid = make_grid(echo_app(), nodes=3)
    nodes = grid.get_node_ids()
    assert len(set(nodes)) == 3
    sent = [Message(RecordDict(), node, "query", group_id="7") for node in nodes]
    replies = grid.send_and_receive(sent)
    assert [r.metadata.reply_to_message_id for r in replies] == [
        m.metadata.message_id for m in sent
    ]
    assert [r.metadata.src_node_id for r in replies] == nodes
    assert {r.metadata.dst_node_id for r in replies} == {m.metadata.src_node_id for m in sent}
    assert {r.metadata.group_id for r in replies} == {"7"}
    assert len({m.metadata.message_id for m in [*sent, *replies]}) == 6


def test_a_node_that_is_unknown_is_dropped() -> None:
    grid = make_grid(echo_app())
    sent = [Message(RecordDict(), node, "query") for node in (5, grid.get_node_ids()[0])]
    (reply,) = grid.send_and_receive(sent)
    assert reply.metadata.reply_to_message_id == sent[1].metadata.message_id


def test_replies_can_be_pulled_once() -> None:
    grid = make_grid(echo_app())
    ids = grid.push_messages([Message(RecordDict(), grid.get_node_ids()[0], "query")])
    assert len(grid.pull_messages(ids)) == 1
    assert grid.pull_messages(ids) == []


def test_content_is_a_copy_with_its_types() -> None:
    content = RecordDict(
        {
            "arrays": ArrayRecord({"a": ArrayRecord([np.zeros((0, 3), np.int32)])["0"]}),
            "config": ConfigRecord({"b": b"\x00", "s": ["x"], "flag": True, "n": 2**40}),
            "metrics": MetricRecord({"loss": float("inf"), "steps": [1, 2]}),
        }
    )
    seen: list[RecordDict] = []
    app = ClientApp()

    @app.query()
    def keep(message: Message, context: Context) -> Message:
        seen.append(message.content)
        message.content.config_records["config"]["n"] = 0
        return Message(content, reply_to=message)

    grid = make_grid(app, nodes=1)
    (reply,) = grid.send_and_receive([Message(content, grid.get_node_ids()[0], "query")])
    assert reply.content is not content
    assert reply.content == content
    assert content.config_records["config"]["n"] == 2**40
    assert seen[0].array_records["arrays"]["a"].numpy().shape == (0, 3)
    assert reply.content.array_records["arrays"]["a"].numpy().dtype == np.int32


@pytest.mark.parametrize("what", ["raises", "too large an integer", "state that cannot be kept"])
def test_a_client_that_fails_gives_an_error_and_keeps_its_state(what: str) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        reply = RecordDict()
        context.state["seen"] = ConfigRecord({"number": len(context.state)})
        if what == "raises":
            raise KeyError("weights")
        if what == "too large an integer":
            reply["config"] = ConfigRecord({"n": 2**70})
        else:
            context.state["config"] = ConfigRecord({"n": 2**70})
        return Message(reply, reply_to=message)

    @app.query()
    def count(message: Message, context: Context) -> Message:
        content = RecordDict({"state": ConfigRecord({"size": len(context.state)})})
        return Message(content, reply_to=message)

    grid = make_grid(app, nodes=1)
    (node,) = grid.get_node_ids()
    sent = Message(RecordDict(), node, "train")
    (failed,) = grid.send_and_receive([sent])
    assert failed.has_error()
    assert failed.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert failed.metadata.reply_to_message_id == sent.metadata.message_id
    assert failed.metadata.src_node_id == node
    (answer,) = grid.send_and_receive([Message(RecordDict(), node, "query")])
    assert answer.content["state"] == ConfigRecord({"size": 0})


def test_an_action_that_no_client_has_is_an_error() -> None:
    grid = make_grid(echo_app(), nodes=1)
    (reply,) = grid.send_and_receive([Message(RecordDict(), grid.get_node_ids()[0], "train.x")])
    assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert "No train function registered" in str(reply.error.reason)


def test_a_client_that_changes_the_run_config_is_an_error() -> None:
    app = ClientApp()

    @app.query()
    def change(message: Message, context: Context) -> Message:
        context.run_config["scale"] = 9.0
        return Message(RecordDict(), reply_to=message)

    grid = make_grid(app, nodes=1)
    (reply,) = grid.send_and_receive([Message(RecordDict(), grid.get_node_ids()[0], "query")])
    assert reply.error.code == ErrorCode.UNKNOWN


@pytest.mark.parametrize("kind", ["nothing", "another message's reply"])
def test_what_is_no_reply_is_no_reply(kind: str) -> None:
    app = ClientApp()
    first: list[Message] = []

    @app.query()
    def answer(message: Message, context: Context) -> Any:
        first.append(message)
        return None if kind == "nothing" else Message(RecordDict(), reply_to=first[0])

    grid = make_grid(app, nodes=1)
    (node,) = grid.get_node_ids()
    begin = time.monotonic()
    replies = grid.send_and_receive([Message(RecordDict(), node, "query") for _ in range(2)])
    assert len(replies) == (0 if kind == "nothing" else 1)
    assert time.monotonic() - begin < 5


def test_the_deadline_holds_between_messages() -> None:
    reached: list[object] = []
    app = ClientApp()

    @app.query()
    def sleep(message: Message, context: Context) -> Message:
        reached.append(context.node_config["partition-id"])
        time.sleep(0.0 if len(reached) == 1 else 0.5)
        return Message(RecordDict(), reply_to=message)

    grid = make_grid(app, nodes=4)
    sent = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
    replies = grid.send_and_receive(sent, timeout=0.3)
    assert len(reached) == 2  # The second client is at work at the deadline, two are not reached.
    assert [r.metadata.reply_to_message_id for r in replies] == [sent[0].metadata.message_id]
    assert grid.pull_messages([m.metadata.message_id for m in sent]) == []
    assert grid.send_and_receive(sent[:1], timeout=0) == []


def test_a_message_for_another_grid_is_refused() -> None:
    old = make_grid(echo_app())
    make_grid(echo_app())
    with pytest.raises(FedfuseError, match="make a message after its own grid"):
        old.send_and_receive([Message(RecordDict(), old.get_node_ids()[0], "query")])


def test_nodes_have_their_own_config() -> None:
    seen: dict[object, object] = {}
    client, server = ClientApp(), ServerApp()

    @client.query()
    def look(message: Message, context: Context) -> Message:
        seen[context.node_config["partition-id"]] = dict(context.node_config)
        return Message(RecordDict(), reply_to=message)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        assert context.run_config == {"a.b": 1}
        nodes = grid.get_node_ids()
        grid.send_and_receive([Message(RecordDict(), node, "query") for node in nodes])

    run_in_process(server, client, {"a.b": 1}, 2, node_configs=[{}, {"device": "cuda:1"}])
    assert seen == {
        0: {"partition-id": 0, "num-partitions": 2},
        1: {"partition-id": 1, "num-partitions": 2, "device": "cuda:1"},
    }


def test_what_is_refused() -> None:
    client, server = ClientApp(), ServerApp()
    with pytest.raises(FedfuseError, match="num_clients: expected at least 1, got 0"):
        run_in_process(server, client, {}, 0)
    with pytest.raises(FedfuseError, match="node_configs: expected none or 2, got 1"):
        run_in_process(server, client, {}, 2, node_configs=[{}])
    with pytest.raises(
        FedfuseError,
        match=r"run config key 'local.layers': expected a bool, int, float or str, got \[1\]",
    ):
        run_in_process(server, client, {"local.layers": [1]}, 1)  # type: ignore[dict-item]
    with pytest.raises(
        FedfuseError, match=r"node config key 'x': expected a bool, int, float or str, got None"
    ):
        new_context(1, 1, {"x": None}, {})  # type: ignore[dict-item]


def test_message_bytes_counts_the_content() -> None:
    make_grid(echo_app())

    def size(numbers: int) -> int:
        content = RecordDict({"a": ArrayRecord([np.zeros(numbers, np.float16)])})
        return message_bytes(Message(content, 1, "query"))

    assert size(1000) - size(500) in range(1000, 1010)  # Lengths take a few bytes more.
    assert size(0) < 300
    assert message_bytes(Message(RecordDict(), 1, "query")) == 0

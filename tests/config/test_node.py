"""Node configs: what a machine puts in the place of the run config."""

from __future__ import annotations

from typing import Any

from fedfuse.config.node import parse_client


def test_a_tokenizer_belongs_to_the_model_that_it_is_named_with() -> None:
    run = {"clients.model": "0=http://x/v1#a, *=b", "clients.tokenizer": "0=folder"}
    names = []
    nodes: list[dict[str, Any]] = [{"partition-id": 0}, {"partition-id": 1}]
    for node in (*nodes, nodes[0] | {"model": "c"}):
        clients = parse_client({"num-partitions": 2, **node}, run).config.clients
        names.append((clients.model, clients.tokenizer))
    assert names == [("http://x/v1#a", "folder"), ("b", ""), ("c", "")]
    own = {"partition-id": 1, "num-partitions": 2, "tokenizer": "own"}
    assert parse_client(own, run).config.clients.tokenizer == "own"

"""What a machine says about itself goes before the run config; its data is its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedfuse.config.node import parse_client
from fedfuse.errors import FedfuseError
from fedfuse.factory.data import private_samples, shared_samples
from tests.federations import FAST

SHARE = {"partition-id": 1, "num-partitions": 4}


def test_a_silent_node_is_what_the_run_says() -> None:
    client = parse_client(SHARE, {**FAST, "clients.model": "0=a, *=b", "output": "here"})
    config = client.config
    assert (config.clients.model, config.output) == ("b", "here")
    assert (config.clients.device, config.clients.dtype) == ("cpu", "float32")
    assert (config.local.max_tokens, config.client_distill.max_tokens) == (0, 0)


def test_what_a_node_says_goes_first() -> None:
    own = {"model": "./a,b=c", "device": "cuda:1", "dtype": "bfloat16", "quantization": "4bit"}
    client = parse_client({**SHARE, **own, "output": "/mine"}, FAST)
    config = client.config
    assert {key: getattr(config.clients, key) for key in own} == own
    assert config.clients.lora.rank == FAST["clients.lora-rank"]
    assert config.output == "/mine"
    assert config.server == parse_client(SHARE, FAST).config.server


@pytest.mark.parametrize(
    ("run", "node", "both"), [(0, 0, 0), (0, 512, 512), (256, 512, 256), (512, 256, 256), (9, 0, 9)]
)
def test_the_smaller_limit_holds(run: int, node: int, both: int) -> None:
    given = {**FAST, "local.max-tokens": run, "client-distill.max-tokens": run}
    config = parse_client({**SHARE, "max-tokens": node}, given).config
    assert config.local.max_tokens == config.client_distill.max_tokens == both
    assert config.client_distill.replay


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"partition-id": -1}, "partition-id: expected at least 0, got -1"),
        ({"partition-id": "0"}, "partition-id: expected int, got '0'"),
        ({"modle": "x"}, "modle = 'x': no such key; did you mean 'model'"),
        ({"dtype": "int8"}, "dtype: expected '', 'float32'"),
        ({"threads": -1, "max-tokens": True}, "threads: (.|\n)*max-tokens: expected int, got True"),
        ({}, "expected a partition-id of its own"),
    ],
)
def test_bad_node_configs_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(FedfuseError, match=f"node config(.|\n)*{message}"):
        parse_client(given, FAST)


def test_every_partition_has_its_own_samples() -> None:
    nodes = [{"partition-id": number, "num-partitions": 4} for number in range(4)]
    parts = [private_samples(parse_client(node, FAST)).train for node in nodes]
    texts = [sample.text for part in parts for sample in part]
    assert all(parts)
    assert len(set(texts)) == len(texts)


def test_a_partition_beyond_their_number_is_refused() -> None:
    with pytest.raises(FedfuseError, match="partition-id: expected 0 to 3, got 4"):
        private_samples(parse_client({**SHARE, "partition-id": 4}, FAST))


def test_own_data_goes_without_what_is_shared(tmp_path: Path) -> None:
    shared = shared_samples(parse_client(SHARE, FAST).config.data, 0)
    texts = ["one", "one", "two", shared.public[0].text, shared.test[0].text]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    samples = private_samples(parse_client({**SHARE, "data": str(file)}, FAST), shared).train
    assert [sample.text for sample in samples] == ["one", "two"]
    assert {sample.domain for sample in samples} == {"mine"}
    file.write_text(json.dumps({"text": shared.test[0].text}))
    with pytest.raises(FedfuseError, match=r"mine.jsonl' has no text that is not in the public"):
        private_samples(parse_client({**SHARE, "data": str(file)}, FAST), shared)


def test_own_data_of_a_folder_is_its_train_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(
            json.dumps({"prompt": "p", "target": split, "domain": "d"})
        )
    node = {**SHARE, "data": str(tmp_path)}
    given = {**FAST, "data.template": "{prompt}"}
    (sample,) = private_samples(parse_client(node, given)).train
    assert (sample.prompt, sample.answer, sample.domain) == ("p", " train", "d")

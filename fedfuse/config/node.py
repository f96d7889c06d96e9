"""The node config of one machine, and the run config with the machine's own values in it.

``flower-supernode --node-config node.toml`` hands it to the ClientApp with every message; in
simulation Flower makes one that has ``partition-id`` and ``num-partitions`` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from fedfuse.config.fields import between, one_of, text
from fedfuse.config.run_config import RunConfig, fill, model_config, parse
from fedfuse.config.training import TrainingConfig
from fedfuse.errors import FedfuseError

P = TypeVar("P", bound=TrainingConfig)


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One machine that takes part. Empty text and 0 leave the run config's value.

    Attributes:
        partition_id: number of this client: its name in reports, and its share of the run's data.
            No two clients may have the same.
        num_partitions: into how many shares the run's private data is dealt.
        model: the base model, in place of ``clients.model``.
        tokenizer: with a model behind a URL, in place of ``clients.tokenizer``.
        data: this machine's own private data, in place of a share of ``data.source``: all records
            of a .jsonl file, of the train split of a folder or hub id, or of several joined by
            ``+``. They are read with the run's ``data.template``.
        device: in place of ``clients.device``.
        dtype: in place of ``clients.dtype``.
        quantization: in place of ``clients.quantization``.
        device_map: in place of ``clients.device-map``.
        threads: CPU threads that torch may use.
        max_tokens: tokens at once while training, at most; the run's ``max-tokens`` holds where it
            is smaller.
        output: folder of the run folders, in place of the run's.
    """

    partition_id: int = between(0, 0)
    num_partitions: int = between(1, 1)
    model: str = text("", empty=True)
    tokenizer: str = text("", empty=True)
    data: str = text("", empty=True)
    device: str = text("", empty=True)
    dtype: str = one_of("", "", "float32", "bfloat16", "float16")
    quantization: str = one_of("", "", "none", "4bit", "8bit")
    device_map: str = one_of("", "", "none", "auto")
    threads: int = between(0, 0)
    max_tokens: int = between(0, 0)
    output: str = text("", empty=True)


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """Everything that configures one client.

    Attributes:
        node: the machine's node config.
        config: the run config with the machine's own values; ``clients.model`` is the one base
            model of this client.
    """

    node: NodeConfig
    config: RunConfig


def parse_client(node_config: Mapping[str, Any], run_config: Mapping[str, Any]) -> ClientConfig:
    """Read both configs, as Flower carries them.

    Raises:
        FedfuseError: listing every unknown key, wrong type and value out of range of one config; a
            node config without ``partition-id``.
    """
    node = fill(NodeConfig(), node_config, "node config")
    if "partition-id" not in node_config:
        raise FedfuseError("node config: expected a partition-id of its own, got none")
    config = parse(run_config)
    keys = ("device", "dtype", "quantization", "device_map")
    own = {key: getattr(node, key) for key in keys}
    clients = (
        replace(config.clients, model=node.model, tokenizer=node.tokenizer)
        if node.model
        else model_config(config.clients, node.partition_id)
    )
    clients = replace(
        clients,
        tokenizer=node.tokenizer or clients.tokenizer,
        **{key: value for key, value in own.items() if value},
    )
    return ClientConfig(
        node,
        replace(
            config,
            output=node.output or config.output,
            clients=clients,
            local=_limited(config.local, node.max_tokens),
            client_distill=_limited(config.client_distill, node.max_tokens),
        ),
    )


def _limited(phase: P, max_tokens: int) -> P:
    """A phase with the smaller of two limits, of which 0 is none."""
    return replace(phase, max_tokens=min(filter(None, (phase.max_tokens, max_tokens)), default=0))

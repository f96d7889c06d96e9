"""What all kinds of clients have in common: configs, persistent state, and a method a message.

A kind of client of your own is a subclass of ``BaseClient`` or of a built-in kind. Its strategy
names it, and the run config carries the name (``client``) to the machines of the clients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import torch
from flwr.app import ConfigRecord, Context, RecordDict

from clients.client_state import ClientState
from fedfuse.config.node import parse_client
from fedfuse.config.run_config import RunConfig
from fedfuse.errors import FedfuseError
from fedfuse.flower.messages import unpack_context


class BaseClient(ABC):
    """One client, made anew for each message.

    Args:
        context: Flower's, with the node config and what the last message left.
        request: the whole content of the message.

    Attributes:
        client: node config and run config of this machine.
        config: run config, with what the node config has in its place.
        partition: number of this client, and of its share of the private data.
        records: ``Context.state``, which outlives the message.
        client_state: the copy of ``records`` on this machine.

    Raises:
        FedfuseError: for a message of an earlier round than the state.
    """

    # Built-in strategies that this kind answers where the run config names no kind of client.
    strategies: ClassVar[tuple[str, ...]] = ()

    def __init__(self, context: Context, request: RecordDict) -> None:
        self.client = parse_client(context.node_config, context.run_config)
        self.config: RunConfig = self.client.config
        node = self.client.node
        self.partition = node.partition_id
        if node.threads:
            torch.set_num_threads(node.threads)
        self.records = context.state
        request_context, config = unpack_context(request), request.config_records["config"]
        self.folder = (
            Path(self.config.output)
            / Path(request_context.run).name
            / "clients"
            / str(self.partition)
        )
        self.client_state = ClientState(
            self.records,
            self.folder,
            {
                "partition": f"{node.partition_id} of {node.num_partitions}",
                "model": self.model_name,
            },
            request_context,
            int(config["after"]) if "after" in config else None,  # type: ignore[arg-type]
        )

    @property
    @abstractmethod
    def model_name(self) -> str:
        """Name of the model that this client trains, or asks."""

    def registration_info(self, **facts: str | bool) -> ConfigRecord:
        """Facts that every client replies to a registration, and more."""
        return ConfigRecord(
            {
                "partition": self.partition,
                "model": self.model_name,
                # What an earlier part of the run left, if this is not the first.
                "state-round": self.client_state.round,
                "damaged": self.client_state.damaged,
                **facts,
            }
        )

    def save(self) -> None:
        """Write the state to the disk, if the message changed it."""
        self.client_state.save()

    # --- The messages, each with the content of its request and of its reply ---------------------

    @abstractmethod
    def register(self, request: RecordDict) -> RecordDict:
        """``query.register``: reply with ``registration_info``."""

    @abstractmethod
    def train(self, request: RecordDict) -> RecordDict:
        """``train.local``: train on private data."""

    def distill(self, request: RecordDict) -> RecordDict:
        """``train.distill``: learn from the server."""
        raise FedfuseError(f"{type(self).__name__}: expected no request to learn from the server")

    @abstractmethod
    def evaluate(self, request: RecordDict) -> RecordDict:
        """``evaluate``: score this client's model or prompt."""

    @abstractmethod
    def measure_baselines(self, request: RecordDict) -> RecordDict:
        """``train.baseline``: train and score without the federation."""

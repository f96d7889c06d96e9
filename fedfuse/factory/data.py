"""The data that a run config names, rebuilt from the config and cached per process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

from fedfuse.algorithms.local_model import LocalModel
from fedfuse.builtin.text_world import World
from fedfuse.config.data import BUILTIN_DATA, DataConfig
from fedfuse.config.node import ClientConfig, NodeConfig
from fedfuse.config.run_config import RunConfig, derive_seed
from fedfuse.data.sample import Sample, Splits
from fedfuse.data.sampling import round_indices
from fedfuse.data.splits import build_splits, check_splits, own_samples
from fedfuse.errors import check
from fedfuse.tokenizers.dataset import TokenizedDataset

T = TypeVar("T")


@lru_cache(maxsize=2)
def load_splits(data: DataConfig, seed: int, num_partitions: int) -> Splits:
    """The data of a run.

    Raises:
        FedfuseError: for data that cannot be read, or splits that are empty or overlap.
    """
    if data.source == BUILTIN_DATA:
        splits = World(seed, data.domains).splits(data, num_partitions)
    else:
        splits = build_splits(data, num_partitions, seed)
    check_splits(splits)
    return splits


def private_samples(client: ClientConfig) -> list[Sample]:
    """Private samples of a client: its own data, or its share of the run's.

    Raises:
        FedfuseError: for data that cannot be read, or a partition that does not exist.
    """
    node, config = client.node, client.config
    if node.data:
        shared = load_splits(config.data, config.seed, 1)
        return own_samples(node.data, config.data.template, shared)
    splits = load_splits(config.data, config.seed, node.num_partitions)
    return share_of(node, splits.private)


def share_of(node: NodeConfig, private: Sequence[T]) -> T:
    """A client's share of the run's private data.

    Raises:
        FedfuseError: for a partition that does not exist.
    """
    number = node.partition_id
    check("partition-id", number, f"0 to {len(private) - 1}", number < len(private))
    return private[number]


def public_subset(
    config: RunConfig, local_model: LocalModel, server_round: int
) -> TokenizedDataset:
    """The public samples of a round, the same for everybody."""
    public, share = local_model.public, config.knowledge.public_share
    if share == 1:
        return public
    which = round_indices(len(public), share, derive_seed(config, "public"), server_round)
    return local_model.encode([public.samples[i] for i in which])

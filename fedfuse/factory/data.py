"""The data that a run config names, rebuilt from the config and cached per process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from fedfuse.algorithms.local_model import LocalModel
from fedfuse.builtin.text_world import World
from fedfuse.config.data import BUILTIN_DATA, DataConfig
from fedfuse.config.node import ClientConfig, NodeConfig
from fedfuse.config.run_config import RunConfig, derive_seed
from fedfuse.data.sample import Sample, SharedSamples, Splits
from fedfuse.data.sampling import round_indices
from fedfuse.data.splits import build_splits, check_splits, own_samples, split_validation
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


@lru_cache(maxsize=2)
def shared_samples(data: DataConfig, seed: int) -> SharedSamples:
    """What the server tells every client of the data of a run.

    Raises:
        FedfuseError: as ``load_splits``.
    """
    splits = load_splits(data, seed, 1)
    return SharedSamples(splits.public, splits.test, splits.questions)


@dataclass(frozen=True, slots=True)
class PrivateSamples:
    """A client's private samples.

    Attributes:
        train: what it learns from.
        validation: what it judges by whether learning did it good; may be empty.
    """

    train: list[Sample]
    validation: list[Sample]


def private_samples(client: ClientConfig, shared: SharedSamples | None = None) -> PrivateSamples:
    """Private samples of a client: its own data, or its share of the run's.

    Of each domain a tenth is for validation, at most ``data.holdout`` samples.

    Args:
        client: node and run config.
        shared: texts that are left out of data of its own; None for none.

    Raises:
        FedfuseError: for data that cannot be read, or a partition that does not exist.
    """
    node, config = client.node, client.config
    if node.data:
        held_out = [*shared.public, *shared.test] if shared else []
        samples = own_samples(node.data, config.data.template, held_out)
    else:
        splits = load_splits(config.data, config.seed, node.num_partitions)
        samples = share_of(node, splits.private)
    seed = derive_seed(config, "validation", node.partition_id)
    return PrivateSamples(*split_validation(samples, config.data.holdout, seed))


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

"""Dealing samples to clients: by domain, evenly at random, or with Dirichlet label skew.

``iid`` and ``dirichlet`` are flwr-datasets' partitioners. ``dirichlet`` deals the samples of each
class, so clients have unequal numbers, and with few samples some have none; ``dirichlet-equal`` is
what Hsu et al. do. Dealing by domain extends its
``NaturalIdPartitioner`` (and equals it where there are as many partitions as domains) to any number
of partitions, and needs no import of that heavy package.

Reference: Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated
Visual Classification", arXiv:1909.06335 (Dirichlet label skew).
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError, check

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

SCHEMES = ("domain", "iid", "dirichlet", "dirichlet-equal")


def partition(
    samples: Sequence[Sample], scheme: str, num_partitions: int, alpha: float, seed: int
) -> list[list[Sample]]:
    """Deal samples to ``num_partitions`` clients, each sample to exactly one.

    Args:
        samples: what to deal.
        scheme: ``domain``: a domain a client in sorted order; more clients than domains share
            domains evenly, fewer hold several. ``iid``: evenly at random. ``dirichlet``: the shares
            of each class are drawn from a symmetric Dirichlet distribution. ``dirichlet-equal``:
            the classes' shares of each client are, and all clients get equally many samples; when
            a class is used up, its share goes to the others.
        num_partitions: number of clients, at least 1.
        alpha: the Dirichlet concentration, > 0: 0.1 is strong skew, 100 nearly none.
        seed: of every random choice.

    Returns:
        One list a client; none is empty.

    Raises:
        FedfuseError: for an unknown scheme, more partitions than samples, or an alpha that leaves a
            client without samples.
    """
    check("partition scheme", repr(scheme), ", ".join(SCHEMES), scheme in SCHEMES)
    found = f"{num_partitions} partitions of {len(samples)} samples"
    good = 1 <= num_partitions <= len(samples)
    check("partitions", found, "at least 1 and at most one a sample", good)
    if scheme.startswith("dirichlet"):
        check("partition alpha", alpha, "a number above 0", 0 < alpha < float("inf"))
    if scheme == "domain":
        parts = _by_domain(samples, num_partitions, seed)
    elif scheme == "iid":
        parts = _iid(samples, num_partitions, seed)
    elif scheme == "dirichlet":
        parts = _dirichlet(samples, num_partitions, alpha, seed)
    else:
        parts = _dirichlet_equal(samples, num_partitions, alpha, seed)
    return [[samples[index] for index in part] for part in parts]


def _by_domain(samples: Sequence[Sample], num_partitions: int, seed: int) -> list[list[int]]:
    members = _members([sample.domain for sample in samples])
    parts: list[list[int]] = [[] for _ in range(num_partitions)]
    for position, domain in enumerate(members):
        if num_partitions <= len(members):
            parts[position % num_partitions] += members[domain]
            continue
        sharing = range(position, num_partitions, len(members))
        if len(sharing) > len(members[domain]):
            raise FedfuseError(
                f"expected at least one sample for each partition, got {len(members[domain])} of "
                f"domain {domain!r} for the {len(sharing)} of {num_partitions} "
                "partitions that share it"
            )
        rng = np.random.default_rng([seed, *domain.encode()])
        order = rng.permutation(members[domain])
        for number, chunk in zip(sharing, np.array_split(order, len(sharing)), strict=True):
            # Only the choice is random: samples keep their order, as everywhere in this scheme.
            parts[number] += sorted(chunk.tolist())
    return parts


def _iid(samples: Sequence[Sample], num_partitions: int, seed: int) -> list[list[int]]:
    from flwr_datasets.partitioner import IidPartitioner

    # The partitioner cuts contiguous shards, so the order must be random before.
    order = np.random.default_rng(seed).permutation(len(samples))
    return _run(IidPartitioner(num_partitions), order.tolist(), [""] * len(samples))


def _dirichlet(
    samples: Sequence[Sample], num_partitions: int, alpha: float, seed: int
) -> list[list[int]]:
    from flwr_datasets.partitioner import DirichletPartitioner

    partitioner = DirichletPartitioner(
        num_partitions, partition_by="kind", alpha=float(alpha), min_partition_size=1, seed=seed
    )
    with warnings.catch_warnings():
        # It warns at each draw that leaves a partition empty and draws anew, at most ten times.
        warnings.filterwarnings("ignore", message="The specified min_partition_size")
        try:
            return _run(partitioner, list(range(len(samples))), sample_classes(samples))
        except ValueError as error:
            raise FedfuseError(
                f"partition alpha {alpha} leaves some of the {num_partitions} partitions of "
                f"{len(samples)} samples empty at every attempt: expected a larger alpha, or "
                "fewer partitions"
            ) from error


def _dirichlet_equal(
    samples: Sequence[Sample], num_partitions: int, alpha: float, seed: int
) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    members = _members(sample_classes(samples))
    pools: list[list[int]] = [rng.permutation(of_class).tolist() for of_class in members.values()]
    shares = rng.dirichlet(np.full(len(pools), alpha), size=num_partitions)
    parts: list[list[int]] = [[] for _ in range(num_partitions)]
    # One sample after the other, so that no client is left with what the others did not want.
    for client in np.arange(len(samples)) % num_partitions:
        left = np.array([len(pool) for pool in pools])
        weights = shares[client] * (left > 0)
        if weights.sum() < 1e-9:
            weights = left
        pool = rng.choice(len(pools), p=weights / weights.sum())
        parts[client].append(pools[pool].pop())
    return parts


def _members(kinds: Sequence[str]) -> dict[str, list[int]]:
    """Indices by kind, kinds sorted."""
    return {
        kind: [i for i, found in enumerate(kinds) if found == kind] for kind in sorted(set(kinds))
    }


def sample_classes(samples: Sequence[Sample]) -> list[str]:
    """The class of each sample that label skew is about.

    Domain and label where all samples of the domain share their options; the domain alone for free
    text and for multiple choice, where a label is only the place of the right option.
    """
    options: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for sample in samples:
        options[sample.domain].add(sample.options)
    return [f"{s.domain}\n{s.label}" if len(options[s.domain]) == 1 else s.domain for s in samples]


def _run(partitioner: Partitioner, order: list[int], classes: list[str]) -> list[list[int]]:
    """Let a partitioner deal the indices ``order``, whose classes are ``classes``."""
    from datasets import Dataset

    partitioner.dataset = Dataset.from_dict({"index": order, "kind": classes})
    return [list(partitioner.load_partition(p)["index"]) for p in range(partitioner.num_partitions)]

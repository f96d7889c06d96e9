"""Which samples a step sees, and in what parts: functions of numbers alone, without any state."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

import numpy as np
from jaxtyping import Int64
from numpy import ndarray


def sample_indices(size: int, seed: int, position: int, count: int) -> Int64[ndarray, " count"]:
    """A piece of the endless stream of a set's samples, epoch after epoch.

    Each epoch has every sample once, in an order of its own.

    Args:
        size: samples of the set, at least 1.
        seed: of the order.
        position: of the first sample in the stream, from 0.
        count: how many samples, at least 1.

    Returns:
        ``[count]`` places in the set, which follow from the arguments and nothing else.
    """
    epochs = range(position // size, (position + count - 1) // size + 1)
    order = np.concatenate([_epoch(size, seed, epoch) for epoch in epochs])
    start = position % size
    return order[start : start + count]


def round_indices(size: int, share: float, seed: int, server_round: int) -> Int64[ndarray, " some"]:
    """Samples of a round that is about a share of a set, ascending.

    Rounds read the stream of ``sample_indices`` one after another, so no sample waits longer than
    it must.

    Args:
        size: samples of the set.
        share: share of them in a round, in (0, 1]; rounded up.
        seed: of the order.
        server_round: 1 or more.
    """
    count = math.ceil(size * share)
    return np.unique(sample_indices(size, seed, (server_round - 1) * count, count))


def step_seed(seed: int, position: int) -> int:
    """What a step's dropout is drawn from: a 64-bit number by seed and position in the stream."""
    return int(np.random.SeedSequence((seed, position)).generate_state(1, np.uint64)[0])


def parts_by_length(
    lengths: Int64[ndarray, " samples"], max_tokens: int, pass_cost: int = 0
) -> Iterator[Int64[ndarray, " part"]]:
    """Cut samples into parts of similar length, the short first.

    Args:
        lengths: ``[N]`` tokens of each sample.
        max_tokens: a part's samples times its longest, at most; a longer sample is a part alone. 0
            for no limit.
        pass_cost: tokens of padding that cost as much as a part more does: parts are those whose
            padding and number cost the least. 0 where parts are to be few, whatever the padding.

    Yields:
        Places in ``lengths``.
    """
    order = np.argsort(lengths, kind="stable")
    for begin, end in pairwise(_cuts(lengths[order], pass_cost)):
        start = begin
        for stop, length in enumerate(lengths[order[begin:end]], begin):
            if max_tokens and stop > start and (stop + 1 - start) * length > max_tokens:
                yield order[start:stop]
                start = stop
        if start < end:
            yield order[start:end]


def _cuts(ordered: Int64[ndarray, " samples"], pass_cost: int) -> list[int]:
    """Where to cut samples in order of length so that padding and passes cost the least."""
    size = len(ordered)
    if not pass_cost or not size:
        return [0, size]
    length, begin = np.unique(ordered, return_index=True)
    bounds = np.append(begin, size)  # of the samples of each length
    least = np.zeros(len(length) + 1)  # cost of all samples shorter than the n-th length
    cut = np.zeros(len(length) + 1, dtype=np.int64)
    for n in range(1, len(length) + 1):
        costs = least[:n] + (bounds[n] - bounds[:n]) * length[n - 1] + pass_cost
        cut[n] = np.argmin(costs)
        least[n] = costs[cut[n]]
    found, n = [size], len(length)
    while n:
        n = int(cut[n])
        found.append(int(bounds[n]))
    return found[::-1]


@lru_cache(maxsize=8)  # every step asks again
def _epoch(size: int, seed: int, epoch: int) -> Int64[ndarray, " size"]:
    order = np.random.default_rng((seed, epoch)).permutation(size)
    order.flags.writeable = False
    return order

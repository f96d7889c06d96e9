"""Which samples' turn it is, when a round is about some of them."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Int64
from numpy import ndarray


def turn(number: int, share: float, seed: int, server_round: int) -> Int64[ndarray, " some"]:
    """The samples of a round, ascending.

    Samples are dealt in a shuffled order, round after round, and shuffled anew when all had their
    turn; so no sample waits longer than it must, and a round's samples follow from its number.

    Args:
        number: of all samples.
        share: of them in a round, in (0, 1]; at least one sample, rounded up.
        seed: of the order.
        server_round: 1 or more.
    """
    size = max(1, math.ceil(number * share))
    first = (server_round - 1) * size
    places = np.arange(first, first + size)
    epochs = range(first // number, (first + size - 1) // number + 1)
    order = np.concatenate([np.random.default_rng([seed, e]).permutation(number) for e in epochs])
    return np.unique(order[places - epochs[0] * number])

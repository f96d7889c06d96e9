"""How much each uploaded token is worth, from what the other clients uploaded.

Reference: Wu et al., "FedDTPT", arXiv:2411.00985, Section 3.4.

Differs from the paper: ``gain_weights`` is this project's. Eq. 6 sums over all tokens of the other
clients, so it favours the words that every prompt has anyway, and its softmax over sums of dozens
of cosines leaves a prompt one token with weight. What a client has just found has neither.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64, Int64
from numpy import ndarray

# Weight of a token without a measured gain, as a share of the weight of the largest gain.
BASE_WEIGHT = 0.2


def unit_vectors(embeddings: Float[ndarray, "tokens width"]) -> Float64[ndarray, "tokens width"]:
    """``[T, d]`` embeddings at length 1; a zero vector stays one."""
    wide = embeddings.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(lengths > 0, lengths, 1.0)


def similarity_sums(
    embeddings: Float[ndarray, "tokens width"], owners: Int64[ndarray, " tokens"]
) -> Float64[ndarray, " tokens"]:
    """``w`` of Eq. 5 and 6: the sum of a token's cosines with all tokens of the other clients.

    Args:
        embeddings: ``[T, d]`` contextual embeddings of the tokens of all clients.
        owners: ``[T]`` number of the client that a token comes from, from 0.

    Returns:
        ``[T]``; 0 where there is no other client.
    """
    unit = unit_vectors(embeddings)
    own = np.zeros((owners.max(initial=0) + 1, unit.shape[1]))
    np.add.at(own, owners, unit)
    # The sum of dot products is the dot product with the sum.
    sums: ndarray = np.einsum("td,td->t", unit, own.sum(0) - own[owners])
    return sums


def attention(
    embeddings: Float[ndarray, "tokens width"], owners: Int64[ndarray, " tokens"]
) -> Float64[ndarray, " tokens"]:
    """``alpha`` of Section 3.4: ``w`` of Eq. 6 after a softmax over each client's own tokens.

    Args:
        embeddings: ``[T, d]``, see ``similarity_sums``.
        owners: ``[T]``, see there.

    Returns:
        ``[T]``, of sum 1 for each client.
    """
    sums = similarity_sums(embeddings, owners)
    highest = np.full(owners.max(initial=0) + 1, -np.inf)
    np.maximum.at(highest, owners, sums)
    powers = np.exp(sums - highest[owners])
    shares: ndarray = powers / np.bincount(owners, powers)[owners]
    return shares


def support(
    embeddings: Float[ndarray, "tokens width"], owners: Int64[ndarray, " tokens"]
) -> Float64[ndarray, " tokens"]:
    """How much the other clients' prompts have a token's like: the mean of each one's best cosine.

    Args:
        embeddings: ``[T, d]``, see ``similarity_sums``.
        owners: ``[T]``, see there.

    Returns:
        ``[T]`` in [0, 1], negative means as 0; 1 where there is no other client.
    """
    unit = unit_vectors(embeddings)
    clients = np.unique(owners)
    if len(clients) < 2:
        return np.ones(len(owners))
    cosines = unit @ unit.T
    best = np.stack([cosines[:, owners == client].max(1) for client in clients], axis=1)
    others = owners[:, None] != clients
    mean: ndarray = ((best * others).sum(1) / others.sum(1)).clip(0.0, 1.0)
    return mean


def gain_weights(
    embeddings: Float[ndarray, "tokens width"],
    owners: Int64[ndarray, " tokens"],
    gains: Float64[ndarray, " tokens"],
) -> Float64[ndarray, " tokens"]:
    """Support times what a token was measured to be worth.

    Args:
        embeddings: ``[T, d]``, see ``similarity_sums``.
        owners: ``[T]``, see there.
        gains: ``[T]`` rise in accuracy when its client put it in; a loss counts as 0.

    Returns:
        ``[T]`` in [0, 1 + ``BASE_WEIGHT``].
    """
    gained = np.maximum(gains, 0.0)
    highest = gained.max(initial=0.0)
    shares = gained / highest if highest > 0 else gained
    weights: ndarray = support(embeddings, owners) * (BASE_WEIGHT + shares)
    return weights

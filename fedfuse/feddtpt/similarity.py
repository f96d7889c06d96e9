"""Similarity of uploaded tokens: their weights by the other clients' tokens, and clusters.

References: Wu et al., "FedDTPT", arXiv:2411.00985, Section 3.4 and Algorithm 2; Ester et al., "A
Density-Based Algorithm for Discovering Clusters", KDD 1996 (DBSCAN); Satopää et al., "Finding a
'Kneedle' in a Haystack", ICDCSW 2011 (the elbow).

Differs from the paper: ``gain_weights`` is this project's. Eq. 6 sums over all tokens of the other
clients, so it favours the words that every prompt has anyway, and its softmax over sums of dozens
of cosines leaves a prompt one token with weight. What a client has just found has neither.

What the paper leaves open: the distances are Euclidean between embeddings of length 1, which order
pairs as their cosines do; those that count are to the nearest neighbour that makes a token a core
point; and of the elbows that Kneedle finds the deepest counts, not the first, which is near the
largest distances and makes one cluster of most tokens.

In all functions ``embeddings`` ``[T, d]`` are contextual embeddings of the tokens of all clients,
and ``owners`` ``[T]`` the index of the client that each token comes from, from 0.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64, Int64
from kneed import KneeLocator
from numpy import ndarray
from sklearn.cluster import DBSCAN, KMeans
from sklearn.neighbors import NearestNeighbors

Embeddings = Float[ndarray, "tokens width"]
Owners = Int64[ndarray, " tokens"]
Weights = Float64[ndarray, " tokens"]

NOISE = -1  # cluster of a token that is in none
# Tokens in one context have one embedding, up to the rounding of float32.
LEAST_EPSILON = 1e-3
# Weight of a token without a measured gain, as a share of the weight of the largest gain.
BASE_WEIGHT = 0.2


def unit_vectors(embeddings: Embeddings) -> Float64[ndarray, "tokens width"]:
    """``[T, d]`` embeddings at length 1; a zero vector stays one."""
    wide = embeddings.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(lengths > 0, lengths, 1.0)


def similarity_sums(embeddings: Embeddings, owners: Owners) -> Weights:
    """``w`` ``[T]`` of Eq. 5 and 6: the sum of a token's cosines with all of the other clients'."""
    unit = unit_vectors(embeddings)
    own = np.zeros((owners.max(initial=0) + 1, unit.shape[1]))
    np.add.at(own, owners, unit)
    # The sum of dot products is the dot product with the sum.
    sums: ndarray = np.einsum("td,td->t", unit, own.sum(0) - own[owners])
    return sums


def attention(embeddings: Embeddings, owners: Owners) -> Weights:
    """``alpha`` ``[T]`` of Section 3.4: softmax of ``w`` over each client's own tokens."""
    sums = similarity_sums(embeddings, owners)
    highest = np.full(owners.max(initial=0) + 1, -np.inf)
    np.maximum.at(highest, owners, sums)
    powers = np.exp(sums - highest[owners])
    shares: ndarray = powers / np.bincount(owners, powers)[owners]
    return shares


def support(embeddings: Embeddings, owners: Owners) -> Weights:
    """Support of a token by the other clients: the mean, over them, of the best cosine.

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


def gain_weights(embeddings: Embeddings, owners: Owners, gains: Weights) -> Weights:
    """Support of a token times its measured gain, relative to the largest gain.

    Args:
        embeddings: see above.
        owners: see above.
        gains: ``[T]`` rise in accuracy when its client put it in; a loss counts as 0.

    Returns:
        ``[T]`` in [0, 1 + ``BASE_WEIGHT``].
    """
    gained = np.maximum(gains, 0.0)
    highest = gained.max(initial=0.0)
    shares = gained / highest if highest > 0 else gained
    weights: Weights = support(embeddings, owners) * (BASE_WEIGHT + shares)
    return weights


def dbscan(embeddings: Embeddings, min_samples: int) -> tuple[Int64[ndarray, " tokens"], float]:
    """Cluster by density (DBSCAN).

    Args:
        embeddings: see above.
        min_samples: number of tokens within epsilon, itself included, that make a core point.

    Returns:
        ``[T]`` cluster of each token from 0, ``NOISE`` for none, and epsilon.
    """
    unit = unit_vectors(embeddings)
    epsilon = max(elbow(neighbour_distances(unit, min_samples - 1)), LEAST_EPSILON)
    epsilon *= 1 + 1e-6  # neighbours at the elbow's distance are within, however it was rounded
    labels = DBSCAN(eps=epsilon, min_samples=min_samples).fit_predict(unit)
    return labels.astype(np.int64), epsilon


def kmeans(embeddings: Embeddings, clusters: int, seed: int) -> Int64[ndarray, " tokens"]:
    """``[T]`` cluster of each token, of at most ``clusters``: step 1 of Algorithm 2."""
    unit = unit_vectors(embeddings)
    # More clusters than points cannot be; rounded, tokens in one context are one point.
    distinct = len(np.unique(unit.round(4), axis=0))
    model = KMeans(min(clusters, distinct), n_init=10, random_state=seed)
    labels: ndarray = model.fit_predict(unit).astype(np.int64)
    return labels


def neighbour_distances(unit: Float64[ndarray, "tokens width"], neighbour: int) -> Weights:
    """``[T]`` distance of each token to its n-th nearest other, sorted upwards.

    The farthest one counts where a token has fewer others.
    """
    neighbour = min(neighbour, len(unit) - 1)
    if neighbour < 1:
        return np.zeros(len(unit))
    distances, _ = NearestNeighbors(n_neighbors=neighbour).fit(unit).kneighbors()
    return np.sort(distances[:, -1])


def elbow(values: Float64[ndarray, " n"]) -> float:
    """Value at which sorted values begin to rise steeply; the largest if they do nowhere.

    Args:
        values: ``[n]`` sorted upwards, at least one.

    Returns:
        The elbow by Kneedle that is farthest below the line from the first to the last value.
    """
    if len(values) < 3 or values[-1] - values[0] < LEAST_EPSILON:
        return float(values[-1])
    steps = np.arange(len(values))
    found = KneeLocator(steps, values, curve="convex", direction="increasing", online=True)
    chord = np.linspace(values[0], values[-1], len(values))
    elbows = [int(step) for step in found.all_elbows]
    return float(values[max(elbows, key=lambda step: chord[step] - values[step], default=-1)])


def plane_coordinates(embeddings: Embeddings) -> Float64[ndarray, "tokens 2"]:
    """``[T, 2]`` two principal components of embeddings of length 1, for a plot.

    A component's sign is that which makes its largest coordinate positive.
    """
    unit = unit_vectors(embeddings)
    centred = unit - unit.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(unit), 2))
    found = centred @ axes[:2].T
    points[:, : found.shape[1]] = found
    largest = np.take_along_axis(points, np.abs(points).argmax(0)[None], axis=0)
    return np.where(largest < 0, -points, points)

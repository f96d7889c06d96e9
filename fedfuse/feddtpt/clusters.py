"""Which uploaded tokens are alike: DBSCAN with the elbow of neighbour distances, and k-means.

Distances are Euclidean between embeddings of length 1, which order pairs as their cosines do.

References: Wu et al., "FedDTPT", arXiv:2411.00985, Section 3.4 and Algorithm 2; Ester et al., "A
Density-Based Algorithm for Discovering Clusters", KDD 1996 (DBSCAN); Satopää et al., "Finding a
'Kneedle' in a Haystack", ICDCSW 2011 (the elbow).

What the paper leaves open: the distances are those to the nearest neighbour that makes a token a
core point, and of the elbows that Kneedle finds the deepest counts, not the first, which is near
the largest distances and makes one cluster of most tokens.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64, Int64
from kneed import KneeLocator
from numpy import ndarray
from sklearn.cluster import DBSCAN, KMeans
from sklearn.neighbors import NearestNeighbors

from fedfuse.feddtpt.attention import unit_vectors

NOISE = -1
# Tokens in one context have one embedding, up to the rounding of float32.
LEAST_EPSILON = 1e-3


def dbscan(
    embeddings: Float[ndarray, "tokens width"], min_samples: int
) -> tuple[Int64[ndarray, " tokens"], float]:
    """Clusters by density.

    Args:
        embeddings: ``[T, d]``.
        min_samples: tokens within epsilon, itself included, that make a token a core point.

    Returns:
        ``[T]`` cluster of each token from 0, ``NOISE`` for none, and epsilon.
    """
    unit = unit_vectors(embeddings)
    epsilon = max(elbow(neighbour_distances(unit, min_samples - 1)), LEAST_EPSILON)
    epsilon *= 1 + 1e-6  # neighbours at the elbow's distance are within, however it was rounded
    labels = DBSCAN(eps=epsilon, min_samples=min_samples).fit_predict(unit)
    return labels.astype(np.int64), epsilon


def kmeans(
    embeddings: Float[ndarray, "tokens width"], clusters: int, seed: int
) -> Int64[ndarray, " tokens"]:
    """``[T]`` cluster of each token, of at most ``clusters``: step 1 of Algorithm 2."""
    unit = unit_vectors(embeddings)
    # More clusters than points cannot be; rounded, tokens in one context are one point.
    distinct = len(np.unique(unit.round(4), axis=0))
    model = KMeans(min(clusters, distinct), n_init=10, random_state=seed)
    labels: ndarray = model.fit_predict(unit).astype(np.int64)
    return labels


def neighbour_distances(
    unit: Float64[ndarray, "tokens width"], neighbour: int
) -> Float64[ndarray, " tokens"]:
    """``[T]`` distance of each token to its n-th nearest other, sorted upwards.

    The farthest one counts where a token has fewer others.
    """
    neighbour = min(neighbour, len(unit) - 1)
    if neighbour < 1:
        return np.zeros(len(unit))
    distances, _ = NearestNeighbors(n_neighbors=neighbour).fit(unit).kneighbors()
    return np.sort(distances[:, -1])


def elbow(values: Float64[ndarray, " n"]) -> float:
    """Where sorted values begin to rise steeply; the largest if they do nowhere.

    Args:
        values: ``[n]`` sorted upwards, at least one.

    Returns:
        Of the elbows by Kneedle that which is farthest below the line from first to last value.
    """
    if len(values) < 3 or values[-1] - values[0] < LEAST_EPSILON:
        return float(values[-1])
    steps = np.arange(len(values))
    found = KneeLocator(steps, values, curve="convex", direction="increasing", online=True)
    chord = np.linspace(values[0], values[-1], len(values))
    elbows = [int(step) for step in found.all_elbows]
    return float(values[max(elbows, key=lambda step: chord[step] - values[step], default=-1)])


def plane(embeddings: Float[ndarray, "tokens width"]) -> Float64[ndarray, "tokens 2"]:
    """``[T, 2]`` to draw embeddings of length 1: their two principal components.

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

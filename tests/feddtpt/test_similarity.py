"""Weights of uploaded tokens equal loops over clients and tokens; clusters are close together."""

from __future__ import annotations

import numpy as np
import pytest

from fedfuse.feddtpt.similarity import (
    BASE_WEIGHT,
    NOISE,
    attention,
    dbscan,
    elbow,
    gain_weights,
    kmeans,
    neighbour_distances,
    plane_coordinates,
    similarity_sums,
    support,
    unit_vectors,
)
from tests.oracles import prompts as oracle


def uploads(seed: int, lengths: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, list]:
    """Embeddings, owners, and the same as lists by client; one embedding is zero."""
    rng = np.random.default_rng(seed)
    parts = [rng.normal(0.3, 1.0, (length, 5)).astype(np.float32) for length in lengths]
    parts[0][0] = 0
    owners = np.repeat(np.arange(len(lengths)), lengths)
    return np.concatenate(parts), owners, [part.tolist() for part in parts]


@pytest.mark.parametrize("lengths", [(1, 1), (3, 5, 2), (7, 1, 4, 6), (4,)])
def test_attention_is_the_oracles(lengths: tuple[int, ...]) -> None:
    embeddings, owners, prompts = uploads(1, lengths)
    expected = np.concatenate(oracle.attention(prompts))
    np.testing.assert_allclose(attention(embeddings, owners), expected, rtol=1e-6)


@pytest.mark.parametrize("lengths", [(1, 1), (3, 5, 2), (7, 1, 4, 6)])
def test_support_is_the_oracles(lengths: tuple[int, ...]) -> None:
    embeddings, owners, prompts = uploads(2, lengths)
    expected = np.concatenate(oracle.support(prompts))
    np.testing.assert_allclose(support(embeddings, owners), expected, atol=1e-6)


def test_numbers_by_hand() -> None:
    """Client 0 has east and north, client 1 north twice."""
    embeddings = np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [0.0, 1.0]])
    owners = np.array([0, 0, 1, 1])
    np.testing.assert_allclose(similarity_sums(embeddings, owners), [0, 2, 1, 1])
    rise = 1 / (1 + np.exp(-2))
    np.testing.assert_allclose(attention(embeddings, owners), [1 - rise, rise, 0.5, 0.5])
    np.testing.assert_allclose(support(embeddings, owners), [0, 1, 1, 1])
    weights = gain_weights(embeddings, owners, np.array([0.5, 0.1, -0.3, 0.0]))
    np.testing.assert_allclose(weights, [0, 0.2 + BASE_WEIGHT, BASE_WEIGHT, BASE_WEIGHT])


def test_a_client_alone() -> None:
    """There is nobody to compare with: only gains count."""
    embeddings, owners, _ = uploads(3, (4,))
    np.testing.assert_allclose(attention(embeddings, owners), np.full(4, 0.25))
    weights = gain_weights(embeddings, owners, np.array([0.0, 0.2, 0.1, 0.0]))
    np.testing.assert_allclose(weights, [0.2, 1.2, 0.7, 0.2])


def test_sums_of_hundreds_do_not_overflow() -> None:
    embeddings, owners = np.ones((2000, 3)), np.repeat(np.arange(100), 20)
    np.testing.assert_allclose(attention(embeddings, owners), np.full(2000, 0.05))


def test_without_gains_only_support_counts() -> None:
    embeddings, owners, _ = uploads(4, (3, 3))
    weights = gain_weights(embeddings, owners, np.zeros(6))
    np.testing.assert_allclose(weights, BASE_WEIGHT * support(embeddings, owners))


def at(*degrees: float) -> np.ndarray:
    """Directions in the plane."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


@pytest.mark.parametrize("size", [4, 8, 30, 200])
def test_the_elbow_is_kneedles(size: int) -> None:
    rng = np.random.default_rng(size)
    found = set()
    for _ in range(40):
        values = np.sort(rng.gamma(rng.choice([0.3, 1.0, 3.0]), size=size))
        expected = oracle.kneedle(values.tolist())
        assert elbow(values) == pytest.approx(values[-1] if expected is None else expected)
        found.add(expected is None)
    assert False in found


def test_an_elbow_to_be_seen() -> None:
    values = np.concatenate([np.linspace(0.1, 0.12, 15), [0.5, 0.9, 1.3]])
    assert elbow(values) == pytest.approx(0.12)


@pytest.mark.parametrize("values", [[0.4], [0.4, 0.9], [0.4, 0.4, 0.4], [0.1, 0.2, 0.3, 0.4]])
def test_without_an_elbow_the_largest(values: list[float]) -> None:
    assert elbow(np.array(values)) == values[-1]


def test_neighbour_distances_by_hand() -> None:
    points = unit_vectors(at(0, 60, 180))  # chords: 1, sqrt(3), 2
    np.testing.assert_allclose(neighbour_distances(points, 1), [1, 1, 3**0.5])
    np.testing.assert_allclose(neighbour_distances(points, 2), [3**0.5, 2, 2])
    np.testing.assert_allclose(neighbour_distances(points, 9), [3**0.5, 2, 2])
    np.testing.assert_allclose(neighbour_distances(points[:1], 1), [0])


def test_dbscan_finds_bundles_and_noise() -> None:
    directions = at(0, 1, 2, 3, 90, 91, 92, 93, 200, 290)
    labels, epsilon = dbscan(directions * np.arange(1, 11)[:, None], min_samples=2)
    assert labels.tolist() == [0] * 4 + [1] * 4 + [NOISE] * 2
    assert epsilon == pytest.approx(2 * np.sin(np.radians(0.5)), rel=1e-3)


def test_one_point_is_noise() -> None:
    labels, _ = dbscan(at(10), min_samples=2)
    assert labels.tolist() == [NOISE]


def test_equal_points_are_one_cluster() -> None:
    wobble = np.float32(1e-5)
    labels, _ = dbscan(np.ones((5, 3), np.float32) + wobble * np.eye(5, 3, dtype=np.float32), 2)
    assert labels.tolist() == [0] * 5


def test_kmeans_has_no_more_clusters_than_points() -> None:
    directions = at(0, 1, 90, 91, 200, 200)
    assert len(set(kmeans(directions, 3, seed=0))) == 3
    assert len(set(kmeans(directions, 9, seed=0))) == 5
    assert (kmeans(directions, 3, seed=1) == kmeans(directions, 3, seed=1)).all()


def test_a_plane_keeps_what_is_in_it() -> None:
    rng = np.random.default_rng(3)
    turned = np.linalg.qr(rng.normal(size=(6, 6)))[0][:2]
    flat = at(0, 20, 130, 200, 310)
    points = plane_coordinates(flat @ turned)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    assert distances == pytest.approx(np.linalg.norm(flat[:, None] - flat[None], axis=2))
    assert points.sum(0) == pytest.approx([0, 0])
    assert (np.take_along_axis(points, np.abs(points).argmax(0)[None], 0) > 0).all()
    assert plane_coordinates(flat[:1]).tolist() == [[0, 0]]

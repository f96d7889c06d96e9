"""Epsilon is at the elbow, and clusters are what is close together."""

from __future__ import annotations

import numpy as np
import pytest

from fedfuse.feddtpt.attention import unit_vectors
from fedfuse.feddtpt.clusters import NOISE, dbscan, elbow, kmeans, neighbour_distances, plane
from tests.oracles import prompts as oracle


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
    points = plane(flat @ turned)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    assert distances == pytest.approx(np.linalg.norm(flat[:, None] - flat[None], axis=2))
    assert points.sum(0) == pytest.approx([0, 0])
    assert (np.take_along_axis(points, np.abs(points).argmax(0)[None], 0) > 0).all()
    assert plane(flat[:1]).tolist() == [[0, 0]]

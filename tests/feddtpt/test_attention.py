"""Weights of uploaded tokens equal loops over clients and tokens."""

from __future__ import annotations

import numpy as np
import pytest

from fedfuse.feddtpt.attention import (
    BASE_WEIGHT,
    attention,
    gain_weights,
    similarity_sums,
    support,
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

"""Samples are dealt to clients: each to exactly one, the same way every time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedfuse.data.partition import SCHEMES, partition, sample_classes
from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError


def free(counts: dict[str, int]) -> list[Sample]:
    """Free text, its domains interleaved."""
    made = [Sample("", f"{d} {n}", d) for d, count in counts.items() for n in range(count)]
    return sorted(made, key=lambda sample: int(sample.answer.split()[1]))


def labelled(count: int, options: tuple[str, ...] = (" x", " y")) -> list[Sample]:
    return [
        Sample(f"{n}:", options[n % len(options)], "d", options, n % len(options))
        for n in range(count)
    ]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
@given(
    domains=st.lists(st.sampled_from("abcd"), min_size=12, max_size=60),
    num_partitions=st.integers(1, 6),
    scheme=st.sampled_from(SCHEMES),
    seed=st.integers(0, 2**32 - 1),
)
def test_each_sample_to_one_partition(
    domains: list[str], num_partitions: int, scheme: str, seed: int
) -> None:
    samples = [Sample("", str(number), domain) for number, domain in enumerate(domains)]
    try:
        parts = partition(samples, scheme, num_partitions, 100.0, seed)
    except FedfuseError:
        # Only a rare domain cannot be dealt to all; that has tests of its own.
        assert scheme != "iid"
        assert min(Counter(domains).values()) < num_partitions
        return
    assert len(parts) == num_partitions
    assert all(parts)
    assert sorted((s for p in parts for s in p), key=lambda s: int(s.answer)) == samples
    assert partition(samples, scheme, num_partitions, 100.0, seed) == parts


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "dirichlet-equal"])
def test_seed_matters(scheme: str) -> None:
    samples = labelled(40)
    assert partition(samples, scheme, 4, 1.0, 1) != partition(samples, scheme, 4, 1.0, 2)


def test_domain_is_the_natural_id_partitioner() -> None:
    from datasets import Dataset
    from flwr_datasets.partitioner import NaturalIdPartitioner

    samples = free({"b": 3, "c": 5, "a": 4})
    natural = NaturalIdPartitioner(partition_by="domain")
    natural.dataset = Dataset.from_dict(
        {"index": list(range(len(samples))), "domain": [s.domain for s in samples]}
    )
    expected = [[samples[i] for i in natural.load_partition(p)["index"]] for p in range(3)]
    assert partition(samples, "domain", 3, 1.0, 0) == expected


def test_fewer_partitions_than_domains() -> None:
    parts = partition(free({"a": 2, "b": 2, "c": 2}), "domain", 2, 1.0, 0)
    assert [sorted({s.domain for s in part}) for part in parts] == [["a", "c"], ["b"]]


def test_more_partitions_than_domains() -> None:
    parts = partition(free({"a": 7, "b": 4}), "domain", 5, 1.0, 0)
    assert [({s.domain for s in part}, len(part)) for part in parts] == [
        ({"a"}, 3),
        ({"b"}, 2),
        ({"a"}, 2),
        ({"b"}, 2),
        ({"a"}, 2),
    ]


def test_a_domain_too_small_to_share() -> None:
    with pytest.raises(FedfuseError, match="1 of domain 'b' for the 2 of 4 partitions"):
        partition(free({"a": 7, "b": 1}), "domain", 4, 1.0, 0)


def test_iid_is_even() -> None:
    parts = partition(labelled(10), "iid", 3, 1.0, 0)
    assert sorted(len(part) for part in parts) == [3, 3, 4]
    # Shuffled before it is cut: no partition is a stretch of the original order.
    assert [s.prompt for s in parts[0]] != [f"{n}:" for n in range(len(parts[0]))]


def skew(parts: list[list[Sample]]) -> float:
    """Mean over partitions of the largest label's share."""
    return float(np.mean([max(Counter(s.label for s in p).values()) / len(p) for p in parts]))


def test_alpha_is_label_skew() -> None:
    samples = labelled(400)
    strong = np.mean([skew(partition(samples, "dirichlet", 3, 0.2, s)) for s in range(8)])
    weak = np.mean([skew(partition(samples, "dirichlet", 3, 100.0, s)) for s in range(8)])
    assert weak < 0.6 < 0.7 < strong


def test_equal_sizes_with_any_skew() -> None:
    """Where ``dirichlet`` has nothing for most of ten clients."""
    samples = labelled(165)
    for alpha in (0.001, 0.1, 100.0):
        parts = partition(samples, "dirichlet-equal", 10, alpha, 0)
        assert sorted(map(len, parts)) == [16] * 5 + [17] * 5
    parts = partition(labelled(6000), "dirichlet-equal", 10, 0.1, 0)
    first = [part[:16] for part in parts]  # before a label runs out
    assert skew(first) > 0.85
    even = partition(labelled(6000), "dirichlet-equal", 10, 100.0, 0)
    assert skew([part[:100] for part in even]) < 0.65


def test_classes() -> None:
    same = labelled(3)
    own = [
        Sample("q", " x", "quiz", (" x", " y"), 0),
        Sample("r", " v", "quiz", (" u", " v"), 1),
    ]
    assert sample_classes([*same, *own, Sample("", "t", "free")]) == [
        "d\n0",
        "d\n1",
        "d\n0",
        "quiz",
        "quiz",
        "free\n-1",
    ]


def test_alpha_that_leaves_clients_empty() -> None:
    with pytest.raises(FedfuseError, match=r"alpha 0.001 leaves some of the 10 partitions of 20"):
        partition(labelled(20), "dirichlet", 10, 0.001, 0)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("scheme", ["dirichlet", "dirichlet-equal"])
def test_bad_alpha(scheme: str, alpha: float) -> None:
    with pytest.raises(FedfuseError, match="alpha: expected"):
        partition(labelled(9), scheme, 2, alpha, 0)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("num_partitions", [0, 5])
def test_more_partitions_than_samples(scheme: str, num_partitions: int) -> None:
    with pytest.raises(FedfuseError, match=f"{num_partitions} partitions of 4 samples"):
        partition(labelled(4), scheme, num_partitions, 1.0, 0)


def test_unknown_scheme() -> None:
    with pytest.raises(FedfuseError, match=r"expected domain, iid, dirichlet.*'shards'"):
        partition(labelled(4), "shards", 2, 1.0, 0)

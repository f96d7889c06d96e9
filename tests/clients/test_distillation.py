"""What a client does beyond whole federations, which tests/strategies has."""

from __future__ import annotations

import pytest

from clients.distillation import private_samples
from fedfuse.errors import FedfuseError
from fedfuse.flower.config import parse
from tests.federations import FAST


def test_every_partition_has_its_own_samples() -> None:
    parts = [private_samples(parse(FAST), number, 4) for number in range(4)]
    texts = [sample.text for part in parts for sample in part]
    assert all(parts)
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("partition", [-1, 4])
def test_a_partition_beyond_their_number_is_refused(partition: int) -> None:
    with pytest.raises(FedfuseError, match=rf"partition-id is {partition}; allowed: 0 to 3"):
        private_samples(parse(FAST), partition, 4)

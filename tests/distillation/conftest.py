"""A small adapted GPT-2, and the public set as it sees it."""

from __future__ import annotations

import pytest

from fedfuse.data.sample import Sample
from fedfuse.tokenizers.dataset import TokenizedDataset
from tests.conftest import Tiny
from tests.distillation.phases import Make


@pytest.fixture
def gpt2(tiny: Make) -> Tiny:
    return tiny("gpt2")


@pytest.fixture
def data(gpt2: Tiny, public: list[Sample]) -> TokenizedDataset:
    return gpt2.encode(public)

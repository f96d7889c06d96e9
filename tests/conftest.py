"""What all tests share: a cache folder of their own, and tiny tokenizers, models and samples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from fedfuse.builtin.architectures import ARCHITECTURES, tiny_causal_lm
from fedfuse.builtin.text_world import World, pretraining_text
from fedfuse.builtin.tokenizers import KINDS, train_tokenizer
from fedfuse.config.data import DataConfig
from fedfuse.config.training import TrainingConfig
from fedfuse.data.sample import Sample
from fedfuse.distillation.training import train
from fedfuse.models.causal_lm import CausalLM
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.grouping import pytest_collection_modifyitems

__all__ = ["pytest_collection_modifyitems"]

MAX_LENGTH = 64


@dataclass(frozen=True)
class Tiny(CausalLM):
    """A tiny model and its tokenizer."""

    @classmethod
    def of(cls, model: nn.Module, tokenizer: TextTokenizer) -> Tiny:
        return cls(model, tokenizer, "tiny", tokenizer.vocab_size, MAX_LENGTH)

    def encode(self, samples: list[Sample], max_length: int = MAX_LENGTH) -> TokenizedDataset:
        return TokenizedDataset(self.tokenizer, samples, max_length)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing that tests build goes to the user's cache, and torch takes one core."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDFUSE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def language() -> list[str]:
    """Sentences of the built-in world."""
    return [sample.text for sample in pretraining_text(250, seed=0)]


@pytest.fixture(scope="session")
def tiny_tokenizers(language: list[str]) -> dict[str, TextTokenizer]:
    """A small tokenizer of each built-in kind."""
    sizes = dict(zip(KINDS, (420, 300, 330), strict=True))
    return {
        kind: TextTokenizer.from_pretrained(train_tokenizer(kind, size, language))
        for kind, size in sizes.items()
    }


@pytest.fixture(scope="session")
def public() -> list[Sample]:
    """A small public set, of two domains."""
    return (
        World(seed=0, domains=2)
        .splits(DataConfig(private=8, public=6, holdout=0, test=1, questions=0), 1)
        .public
    )


@pytest.fixture(scope="session")
def _trained(tiny_tokenizers: dict[str, TextTokenizer], language: list[str]) -> dict[str, Tiny]:
    kinds = {"gpt2": KINDS[0], "llama": KINDS[1], "opt": KINDS[0], "gpt_neox": KINDS[2]}
    models = {}
    for architecture in ARCHITECTURES:
        tokenizer = tiny_tokenizers[kinds[architecture]]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            # Some rows more than the tokenizer has tokens, as in many published models.
            size = tokenizer.vocab_size + 7
            model = tiny_causal_lm(architecture, vocab_size=size, width=16, layers=1)
            data = TokenizedDataset(tokenizer, [Sample("", text) for text in language], MAX_LENGTH)
            settings = TrainingConfig(steps=20, batch_size=8, learning_rate=1e-2)
            train(Tiny.of(model, tokenizer), data, settings, seed=0)
        models[architecture] = Tiny.of(model.eval(), tokenizer)
    return models


@pytest.fixture(scope="session")
def tiny(_trained: dict[str, Tiny]) -> Callable[[str], Tiny]:
    """A copy of the model of an architecture after twenty steps: no longer uniform, soon made."""
    return lambda name: Tiny.of(copy.deepcopy(_trained[name].model), _trained[name].tokenizer)

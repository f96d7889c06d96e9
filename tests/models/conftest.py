"""Folders of tiny models, for all tests of models."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from fedfuse.builtin.architectures import tiny_causal_lm
from fedfuse.builtin.tokenizers import train_tokenizer
from fedfuse.models.causal_lm import (
    CausalLM,
    load_causal_lm,
)
from tests.models.folders import LINEAR, TEXTS


@pytest.fixture(scope="session")
def base_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random model of each architecture, saved as a Hugging Face folder."""
    tokenizer = train_tokenizer("byte-level-bpe", 300, TEXTS)
    folders = {}
    for architecture in LINEAR:
        folder = tmp_path_factory.mktemp("models") / architecture
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            # Some rows more than the tokenizer has tokens, as in many published models.
            vocab_size = len(tokenizer) + 5
            tiny_causal_lm(architecture, vocab_size=vocab_size, width=16, layers=2).save_pretrained(
                folder
            )
        tokenizer.save_pretrained(folder)
        folders[architecture] = folder
    return folders


@pytest.fixture(params=list(LINEAR))
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def lm(base_folders: dict[str, Path], architecture: str) -> CausalLM:
    return load_causal_lm(str(base_folders[architecture]), device="cpu")


@pytest.fixture
def folder(base_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A Llama folder to spoil."""
    return Path(shutil.copytree(base_folders["llama"], tmp_path / "base"))

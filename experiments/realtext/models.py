"""Small language models around real tokenizers, pretrained here on a data set's questions."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer

from fedfuse.builtin.architectures import MAX_LENGTH, tiny_causal_lm
from fedfuse.config.training import TrainingConfig
from fedfuse.data.records import load_records
from fedfuse.data.sample import Sample
from fedfuse.distillation.training import train
from fedfuse.models.causal_lm import CausalLM
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tokenizers.tokenizer import TextTokenizer

TEXTS_PER_SOURCE = 2000


@dataclass(frozen=True, slots=True)
class TinyModelRecipe:
    """A small model around a real tokenizer.

    Attributes:
        name: of its folder.
        architecture: a key of ``fedfuse.builtin.architectures``.
        tokenizer: folder name of the tokenizer in the material.
    """

    name: str
    architecture: str
    tokenizer: str


RECIPES = (
    TinyModelRecipe("gpt2-tiny", "gpt2", "gpt2"),
    TinyModelRecipe("llama2-tiny", "llama", "llama2"),
    TinyModelRecipe("bert-neox-tiny", "gpt_neox", "bert_uncased"),
)
STEPS, BATCH, WIDTH, LAYERS = 200, 8, 48, 2


def build_models(material: Path, sources: Sequence[str], folder: Path) -> list[Path]:
    """Build every recipe that is not in ``folder`` yet; only unlabelled text is used."""
    texts = [
        str(record.get("text") or record.get("question"))
        for source in sources
        for _, record in load_records(source, "train")[:TEXTS_PER_SOURCE]
    ]
    return [_build(recipe, material, texts, folder) for recipe in RECIPES]


def _build(recipe: TinyModelRecipe, material: Path, texts: Sequence[str], folder: Path) -> Path:
    target = folder / recipe.name
    if (target / "config.json").exists():
        return target
    tokenizer = AutoTokenizer.from_pretrained(
        str(material / "tokenizers" / recipe.tokenizer), local_files_only=True
    )
    text_tokenizer = TextTokenizer.from_pretrained(tokenizer)
    torch.manual_seed(0)
    model = tiny_causal_lm(
        recipe.architecture, vocab_size=text_tokenizer.vocab_size, width=WIDTH, layers=LAYERS
    )
    data = TokenizedDataset(text_tokenizer, [Sample("", text) for text in texts], MAX_LENGTH // 2)
    settings = TrainingConfig(STEPS, BATCH, 3e-3)
    print(f"pretraining {recipe.name} on {len(texts)} texts", flush=True)
    lm = CausalLM(model, text_tokenizer, recipe.name, text_tokenizer.vocab_size, MAX_LENGTH)
    loss, _ = train(lm, data, settings, seed=0)
    print(f"pretrained {recipe.name}: {loss:.3f} nats per token", flush=True)
    scratch = target.with_name(f".{target.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    tokenizer.save_pretrained(scratch)
    model.save_pretrained(scratch)
    scratch.rename(target)
    return target

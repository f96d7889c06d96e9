"""Models with random weights, made on the spot: no file and no network is needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedfuse.builtin.text_world import pretraining_text
from fedfuse.builtin.tokenizers import train_tokenizer


@dataclass(frozen=True, slots=True)
class Size:
    """Size of a Llama."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int


# SmolLM2-135M's, and one of about a billion weights.
SMALL = Size(30, 576, 9, 3, 1536, 49_152)
LARGE = Size(16, 2048, 32, 8, 8192, 128_256)
QUICK_SMALL, QUICK_LARGE = Size(4, 16, 2, 1, 32, 600), Size(4, 32, 2, 2, 64, 800)


def make(folder: Path, size: Size, seed: int) -> Path:
    """Save a model and a small tokenizer as a Hugging Face folder, and return it."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.width,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    texts = [sample.text for sample in pretraining_text(50, seed=seed)]
    train_tokenizer("byte-level-bpe", 500, texts).save_pretrained(folder)
    return folder

"""Language models of ``realdata``: trained on the spot, kept as ordinary Hugging Face folders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForLanguageModeling,
    GPTNeoXConfig,
    LlamaConfig,
)

from experiments import harness
from experiments.prompts.realtasks import Exercise
from fedfuse.builtin.architectures import HEADS, tiny_masked_lm
from fedfuse.builtin.models import cache_root
from fedfuse.builtin.tokenizers import SPECIALS, train_tokenizer
from fedfuse.config.training import TrainingConfig
from fedfuse.data.sample import Sample
from fedfuse.distillation.training import train
from fedfuse.models.causal_lm import CausalLM
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tokenizers.tokenizer import TextTokenizer

# Of what code below and in realtasks makes; raised when it changes.
VERSION = 1
MAX_LENGTH = 512
# Ends an answer: what a model generates up to.
END = "\n"
# Tokens in a pass: texts of a batch differ in length.
PART = 2048
# A masked model reads the beginning of a question.
MOST_MASKED = 40
MASKED_SHARE, INSTRUCTION_SHARE = 0.2, 0.7


@dataclass(frozen=True, slots=True)
class ModelRecipe:
    """Everything that a language model is made from, but for the texts."""

    architecture: str  # ``llama``, ``gpt_neox``, or ``bert`` for the masked one
    vocab_size: int  # upper bound of the tokenizer's vocabulary
    width: int  # hidden size
    layers: int
    drills: int  # training steps on drills
    steps: int  # training steps on exercises
    learning_rate: float  # peak of the schedule
    batch_size: int = 64  # exercises per step
    seed: int = 0  # of initialisation and batches


RECIPES = {
    "proposes": ModelRecipe("bert", 3000, 64, 2, 0, 1000, 3e-3, seed=2),
    "answers": ModelRecipe("llama", 4000, 128, 2, 300, 1700, 1.5e-3),
    "second": ModelRecipe("gpt_neox", 4000, 128, 2, 300, 1200, 1.5e-3, seed=1),
}


def built(recipe: ModelRecipe, drills: Sequence[Exercise], whole: Sequence[Exercise]) -> Path:
    """The folder of a model, trained unless it is in the cache; a causal one begins with drills."""
    made_from = {"version": VERSION, **asdict(recipe)}
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode())
    for exercise in (*drills, *whole):
        digest.update(repr(exercise).encode())
    name = f"{recipe.architecture}-{digest.hexdigest()[:16]}"
    folder = cache_root() / "prompts-realdata" / name
    if not (folder / "config.json").exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            if recipe.architecture == "bert":
                made = _masked_lm(recipe, whole)
            else:
                made = _causal_lm(recipe, drills, whole)
        harness.save_pretrained(folder, *made)
    return folder


def _causal_lm(
    recipe: ModelRecipe, drills: Sequence[Exercise], whole: Sequence[Exercise]
) -> tuple[Any, Any]:
    """Tokenizer and model that answers questions; only answers are learnt."""
    parts = {
        name: [Sample(e.question, f" {e.answer}{END}") for e in kind]
        for name, kind in (("drills", drills), ("whole", whole))
    }
    texts = [sample.text for sample in parts["whole"]]
    tokenizer = train_tokenizer("byte-level-bpe", recipe.vocab_size, texts)
    known = TextTokenizer.from_pretrained(tokenizer)
    factory: Any = AutoModelForCausalLM
    model = factory.from_config(_config(recipe, known))
    lm = CausalLM(model, known, recipe.architecture, known.vocab_size, MAX_LENGTH)
    # The first stage teaches what strong words mean, the second to weigh words.
    stages = (("drills", recipe.drills, 0.05, 1.0), ("whole", recipe.steps, 0.0, 0.02))
    for name, steps, warmup, final in stages:
        settings = TrainingConfig(
            *(steps, recipe.batch_size, recipe.learning_rate),
            max_tokens=PART,
            warmup_ratio=warmup,
            final_ratio=final,
        )
        data = TokenizedDataset(known, parts[name], MAX_LENGTH)
        report = partial(_report, f"{recipe.architecture}, {name}", steps)
        train(lm, data, settings, seed=recipe.seed, on_step=report)
    (end,) = known.encode([END])
    model.generation_config.eos_token_id = int(end.ids[-1])
    return tokenizer, model


def _config(recipe: ModelRecipe, tokenizer: TextTokenizer) -> Any:
    """Sizes; longer texts than the built-in models'."""
    kind: Any = {"llama": LlamaConfig, "gpt_neox": GPTNeoXConfig}[recipe.architecture]
    ids = tokenizer.special_ids
    return kind(
        vocab_size=tokenizer.vocab_size,
        hidden_size=recipe.width,
        intermediate_size=3 * recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=HEADS,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=False,
        bos_token_id=ids["bos"],
        eos_token_id=ids["eos"],
        pad_token_id=ids["pad"],
    )


def _masked_lm(recipe: ModelRecipe, whole: Sequence[Exercise]) -> tuple[Any, Any]:
    """Tokenizer and model that proposes words, of instructions above all."""
    rng = np.random.default_rng(recipe.seed)
    alone = rng.random(len(whole)) < INSTRUCTION_SHARE
    texts = [e.instruction if only else e.question for e, only in zip(whole, alone, strict=True)]
    tokenizer: Any = train_tokenizer("wordpiece", recipe.vocab_size, texts)
    # With a mask, and bos and eos around a text in BERT's roles.
    bos, eos = SPECIALS[:2]
    tokenizer.add_special_tokens({"mask_token": "<mask>", "cls_token": bos, "sep_token": eos})
    ids = [(bos, tokenizer.bos_token_id), (eos, tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=ids
    )
    shown = [text for text in texts if text]
    lines = tokenizer(shown, truncation=True, max_length=MOST_MASKED)["input_ids"]
    model: Any = tiny_masked_lm(
        "bert", vocab_size=len(tokenizer), width=recipe.width, layers=recipe.layers
    )
    mask: Any = DataCollatorForLanguageModeling(
        tokenizer, mlm_probability=MASKED_SHARE, seed=recipe.seed
    )
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.1
    )
    model.train()
    for step in range(recipe.steps):
        drawn = rng.integers(len(lines), size=recipe.batch_size)
        loss = model(**mask([{"input_ids": lines[index]} for index in drawn])).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        _report("bert", recipe.steps, step + 1, loss.item())
    return tokenizer, model


def _report(what: str, steps: int, step: int, loss: float) -> None:
    """Print a line now and then."""
    if step % 200 == 0 or step == steps:
        print(f"{what}: step {step} of {steps}, {loss:.3f} nats", flush=True)

"""Small models of the world of prompts: causal ones that follow instructions, and a masked one.

The causal ones learn in two stages: drills, whose instructions are nothing but clear words, teach
what every word means; then exercises of all kinds among them teach to weigh words. Without the
first stage most of the steps go by before anything is learnt at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedfuse.builtin.architectures import tiny_causal_lm, tiny_masked_lm
from fedfuse.builtin.instructions import Exercise, draw_drill, draw_exercise
from fedfuse.builtin.prompt_lexicon import vocabulary
from fedfuse.builtin.tokenizers import BOS, EOS, MASK, PAD, word_level_tokenizer
from fedfuse.data.sample import Sample
from fedfuse.models.causal_lm import CausalLM
from fedfuse.models.forward import label_row_logits
from fedfuse.tokenizers.dataset import Batch

MASKED = "bert"
# Share of tokens that are masked, and of the masked model's lines that are an instruction alone.
MASKED_SHARE, INSTRUCTION_SHARE = 0.2, 0.7


@dataclass(frozen=True, slots=True)
class PromptRecipe:
    """Recipe of a model of the world of prompts.

    Attributes:
        architecture: one of ``ARCHITECTURES``; ``bert`` for the masked model.
        drills: training steps on drills.
        steps: training steps in all.
        learning_rate: peak of the schedule.
        batch_size: exercises per step.
        exercises: number of exercises in the training text.
        seed: seed of text, initialisation and batches.
        version: raised when the code that builds models changes its result.
    """

    architecture: str
    width: int
    layers: int
    drills: int
    steps: int
    learning_rate: float
    batch_size: int = 64
    exercises: int = 20000
    seed: int = 0
    version: int = 1


PROMPT_RECIPES = {
    "instructed-llama": PromptRecipe("llama", 96, 2, 500, 1100, 1.5e-3),
    "instructed-gpt-neox": PromptRecipe("gpt_neox", 96, 2, 500, 1100, 1.5e-3, seed=1),
    "masked-bert": PromptRecipe(MASKED, 64, 2, 0, 900, 3e-3, seed=2),
}


def build_prompt_model(
    recipe: PromptRecipe, folder: Path, on_step: Callable[[int], object]
) -> None:
    """Train tokenizer and model and save both as a Hugging Face folder.

    Args:
        recipe: recipe of the model.
        folder: empty folder.
        on_step: called after each step with its number, from 1.
    """
    masked = recipe.architecture == MASKED
    tokenizer = word_level_tokenizer(vocabulary(), masked=masked)
    ids = tokenizer.get_vocab()
    rng = Random(recipe.seed)
    exercises = [draw_exercise(rng) for _ in range(recipe.exercises)]
    drills = [draw_drill(rng) for _ in range(recipe.exercises // 4)] if recipe.drills else []
    everything = exercises + drills
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        size = {"vocab_size": len(ids), "width": recipe.width, "layers": recipe.layers}
        # A head of its own: an answer's word is nothing like the words that it is read off.
        if masked:
            model, loss = tiny_masked_lm(MASKED, **size), masked_loss
        else:
            model = tiny_causal_lm(recipe.architecture, **size, tied=False)
            loss = answer_loss
        drawn = np.random.default_rng(recipe.seed)
        optimizer = torch.optim.AdamW(
            model.parameters(), recipe.learning_rate, (0.9, 0.98), weight_decay=0.01, fused=True
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.1
        )
        model.train()
        for step in range(recipe.steps):
            text = drills if step < recipe.drills else everything
            batch = [text[index] for index in drawn.integers(len(text), size=recipe.batch_size)]
            optimizer.zero_grad(set_to_none=True)
            loss(model, batch, ids, drawn).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            on_step(step + 1)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def drawn_text(count: int) -> list[Sample]:
    """``count`` drills and ``count`` exercises."""
    rng = Random(0)
    drawn = [draw(rng) for draw in (draw_drill, draw_exercise) for _ in range(count)]
    return [Sample(exercise.question, exercise.answer) for exercise in drawn]


def answer_loss(
    model: PreTrainedModel, batch: list[Exercise], ids: dict[str, int], rng: np.random.Generator
) -> Float[Tensor, ""]:
    """Mean cross-entropy (nats per token) of the answers and of the end after them."""
    lines = [_line(f"{exercise.question} {exercise.answer}", ids) for exercise in batch]
    last = np.array([len(line) - 1 for line in lines])
    sample = np.repeat(np.arange(len(lines)), 2)
    row = np.stack([last - 2, last - 1], axis=1).ravel()
    inputs = _padded([line[:-1] for line in lines])
    labels = torch.tensor([token for line in lines for token in line[-2:]])
    rows = torch.from_numpy(sample), torch.from_numpy(row)
    lm = CausalLM(model, None, "", len(ids), 0)  # type: ignore[arg-type]  # no text to encode
    logits = label_row_logits(lm, Batch(inputs, *rows, labels, np.arange(len(row))))
    return nn.functional.cross_entropy(logits, labels)


def masked_loss(
    model: PreTrainedModel, batch: list[Exercise], ids: dict[str, int], rng: np.random.Generator
) -> Float[Tensor, ""]:
    """Mean cross-entropy (nats per token) of masked words of instructions and whole exercises."""
    lines = []
    for exercise in batch:
        alone = rng.random() < INSTRUCTION_SHARE
        text = exercise.instruction if alone else f"{exercise.question} {exercise.answer}"
        lines.append(_line(text, ids))
    inputs = _padded(lines)
    there = inputs != PAD
    hidden = torch.from_numpy(rng.random(inputs.shape)) < MASKED_SHARE
    hidden &= there & (inputs != BOS) & (inputs != EOS)
    shown = inputs.masked_fill(hidden, MASK)
    logits = model(input_ids=shown, attention_mask=there.long()).logits
    return nn.functional.cross_entropy(logits[hidden], inputs[hidden])


def _line(text: str, ids: dict[str, int]) -> list[int]:
    return [BOS, *(ids[word] for word in text.split()), EOS]


def _padded(lines: list[list[int]]) -> Tensor:
    """Token ids ``[B, L]``, padded on the right."""
    return nn.utils.rnn.pad_sequence([torch.tensor(line) for line in lines], True, PAD)

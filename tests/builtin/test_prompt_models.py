"""Models of the world of prompts are built as the other built-in ones are, and can be loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedfuse.builtin import models as builtin
from fedfuse.builtin import prompt_models
from fedfuse.builtin.instructions import Exercise
from fedfuse.builtin.models import build, ensure, model_folder, recipe_of
from fedfuse.builtin.prompt_lexicon import vocabulary
from fedfuse.builtin.prompt_models import PROMPT_RECIPES, answer_loss, masked_loss
from fedfuse.builtin.tokenizers import BOS, EOS, MASK, word_level_tokenizer
from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.masked_lm import MaskedLM
from fedfuse.models.causal_lm import load_causal_lm

NAMES = tuple(f"builtin:{name}" for name in PROMPT_RECIPES)
QUESTION = "please read the note below | soon two plain coats went by van to the farm =>"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache and tiny recipes."""
    monkeypatch.setenv("FEDFUSE_CACHE", str(tmp_path))
    for name, recipe in PROMPT_RECIPES.items():
        tiny = replace(recipe, width=8, layers=1, steps=3, exercises=40, batch_size=4)
        monkeypatch.setitem(PROMPT_RECIPES, name, replace(tiny, drills=min(recipe.drills, 1)))


@pytest.mark.parametrize("name", [name for name in NAMES if "masked" not in name])
def test_a_causal_model_can_be_loaded(name: str) -> None:
    lm = load_causal_lm(str(build(name)), device="cpu")
    assert lm.tokenizer.special_ids == {"bos": 0, "eos": 1, "pad": 2, "unk": 3}
    (encoded,) = lm.tokenizer.encode([QUESTION])
    assert lm.tokenizer.decode(encoded.ids.tolist()) == QUESTION
    assert lm.model.generation_config.eos_token_id == EOS


def test_the_masked_model_can_be_loaded() -> None:
    masked = MaskedLM.load(str(build("builtin:masked-bert")))
    prompt = masked.encode("decide the goods and answer")
    assert masked.text(prompt) == "decide the goods and answer"
    assert masked.tokenizer.special_prefix_suffix == ((BOS,), (EOS,))
    assert masked.tokenizer.special_ids["mask"] == MASK
    assert masked.embed(prompt).shape == (5, 8)
    assert len(masked.allowed) == len(vocabulary())


def test_the_same_recipe_gives_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        weights = []
        for number in range(2):
            monkeypatch.setenv("FEDFUSE_CACHE", str(tmp_path / str(number)))
            torch.manual_seed(number)
            weights.append((build(name) / "model.safetensors").read_bytes())
        assert weights[0] == weights[1]


def test_another_recipe_or_grammar_has_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "instructed-llama"
    before = model_folder(f"builtin:{name}")
    language = model_folder("builtin:llama")
    recipe = PROMPT_RECIPES[name]
    monkeypatch.setitem(PROMPT_RECIPES, name, replace(recipe, version=99))
    assert model_folder(f"builtin:{name}") != before
    monkeypatch.setitem(PROMPT_RECIPES, name, recipe)
    monkeypatch.setattr("fedfuse.builtin.prompt_lexicon.NOTE", ["letter"])
    assert model_folder(f"builtin:{name}") != before
    assert model_folder("builtin:llama") == language


def test_all_are_built_with_their_steps_shown() -> None:
    seen: list[tuple[str, int, int]] = []
    ensure(NAMES, lambda *step: seen.append(step))
    assert sorted(seen) == sorted((name, step, 3) for name in NAMES for step in (1, 2, 3))
    assert all((model_folder(name) / "config.json").exists() for name in NAMES)


def test_an_unknown_name_is_told_what_there_is() -> None:
    with pytest.raises(FedfuseError, match="builtin:words, builtin:instructed-llama"):
        recipe_of("builtin:instructed-gpt2")
    assert not set(builtin.RECIPES) & set(PROMPT_RECIPES)


def test_the_answer_and_the_end_after_it_are_scored() -> None:
    """A model that knows nothing: log V for each; with padding as without."""
    ids = word_level_tokenizer(vocabulary(), masked=False).get_vocab()
    model = prompt_models.tiny_causal_lm("llama", vocab_size=len(ids), width=8, layers=1)
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    short, long = Exercise("code", "soon", "f"), Exercise("decide the goods", "soon", "food")
    loss = answer_loss(model, [short, long], ids, np.random.default_rng(0))
    assert loss.item() == pytest.approx(np.log(len(ids)), rel=1e-5)
    torch.manual_seed(0)
    model = prompt_models.tiny_causal_lm("gpt_neox", vocab_size=len(ids), width=8, layers=1)
    line = torch.tensor([[BOS, *(ids[w] for w in "code | soon => f".split()), EOS]])
    logprobs = model(input_ids=line).logits[0].log_softmax(-1)
    expected = -(logprobs[-3, ids["f"]] + logprobs[-2, EOS]) / 2
    alone = answer_loss(model, [short], ids, np.random.default_rng(0))
    assert alone.item() == pytest.approx(expected.item(), rel=1e-5)
    other = answer_loss(model, [long], ids, np.random.default_rng(0))
    both = answer_loss(model, [short, long], ids, np.random.default_rng(0))
    assert both.item() == pytest.approx((alone.item() + other.item()) / 2, rel=1e-5)


def test_only_masked_words_are_scored() -> None:
    ids = word_level_tokenizer(vocabulary(), masked=True).get_vocab()
    model = prompt_models.tiny_masked_lm("bert", vocab_size=len(ids), width=8, layers=1)
    shown: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, args: tuple[()], inputs: dict[str, torch.Tensor]) -> None:
        shown.append(inputs["input_ids"])

    model.register_forward_pre_hook(keep, with_kwargs=True)
    exercises = [Exercise("decide the goods and answer", "soon", "food")] * 60
    loss = masked_loss(model, exercises, ids, np.random.default_rng(0))
    assert torch.isfinite(loss)
    (inputs,) = shown
    masked = (inputs == MASK).float().sum() / (inputs > MASK).logical_or(inputs == MASK).sum()
    assert 0.12 < masked < 0.28
    assert (inputs[:, 0] == BOS).all()

"""The built-in base models, pretrained on the spot.

Four small language models and a larger one know the built-in world's language and none of its
associations. Two small ones that follow instructions and a masked one belong to the world of
prompts (``prompt_models``). Each is built once, saved as an ordinary Hugging Face folder and cached
under a hash of everything it is made from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from queue import Queue

import torch
from filelock import FileLock

from fedfuse.builtin.architectures import MAX_LENGTH, tiny_causal_lm
from fedfuse.builtin.prompt_models import (
    PROMPT_RECIPES,
    PromptRecipe,
    build_prompt_model,
    drawn_text,
)
from fedfuse.builtin.text_world import pretraining_text
from fedfuse.builtin.tokenizers import train_tokenizer
from fedfuse.config.training import TrainingConfig
from fedfuse.data.sample import Sample, fingerprint
from fedfuse.distillation.training import train
from fedfuse.errors import check
from fedfuse.models.allocator import keep_freed_memory
from fedfuse.models.causal_lm import CausalLM
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tokenizers.tokenizer import TextTokenizer

PREFIX = "builtin:"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that a built-in model is made from; its hash names the cache folder.

    Attributes:
        vocab_size: upper bound of the vocabulary.
        learning_rate: peak of the schedule.
        batch_size: sentences per step.
        samples_per_domain: size of the pretraining text.
        seed: seed of text, initialisation and batches.
        version: raised when the code that builds models changes its result.
    """

    architecture: str
    tokenizer: str
    vocab_size: int
    width: int
    layers: int
    steps: int
    learning_rate: float = 4e-3
    batch_size: int = 32
    samples_per_domain: int = 6000
    seed: int = 0
    version: int = 5


# Five tokenizers, from whole words (opt) to the finest pieces (llama): between any two most answers
# of the world have different numbers of tokens.
RECIPES = {
    "gpt2": Recipe("gpt2", "byte-level-bpe", 560, 64, 2, 1500),
    "llama": Recipe("llama", "unigram", 300, 64, 2, 1500),
    "opt": Recipe("opt", "byte-level-bpe", 2048, 64, 2, 1500),
    "gpt-neox": Recipe("gpt_neox", "wordpiece", 440, 64, 2, 1500),
    "server": Recipe("llama", "byte-level-bpe", 760, 128, 2, 1500, learning_rate=2e-3),
    # Whole words like opt, by another kind of tokenizer: for experiments on alignment.
    "words": Recipe("gpt2", "unigram", 1800, 64, 2, 1500),
}

Progress = Callable[[str, int, int], None]


def cache_root() -> Path:
    """Folder of what can be rebuilt: ``$FEDFUSE_CACHE``, or one in the user's cache."""
    given = os.environ.get("FEDFUSE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "fedfuse"


def is_builtin(name: str) -> bool:
    """Whether a model is named as a built-in one."""
    return name.startswith(PREFIX)


def recipe_of(name: str) -> Recipe | PromptRecipe:
    """The recipe of ``builtin:NAME``.

    Raises:
        FedfuseError: for a name that does not exist.
    """
    known: dict[str, Recipe | PromptRecipe] = {**RECIPES, **PROMPT_RECIPES}
    short = name.removeprefix(PREFIX)
    expected = ", ".join(PREFIX + other for other in known)
    check("built-in model", repr(name), f"one of {expected}", short in known)
    return known[short]


def model_folder(name: str) -> Path:
    """The cache folder of a built-in model, whether built yet or not."""
    recipe = recipe_of(name)
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    # A few sentences, which change when the words or the grammar do.
    text = drawn_text(50) if isinstance(recipe, PromptRecipe) else pretraining_text(50, seed=0)
    digest.update(fingerprint(text).encode())
    short = name.removeprefix(PREFIX)
    return cache_root() / "models" / f"{short}-{digest.hexdigest()[:16]}"


def _silent(name: str, step: int, steps: int) -> None:
    """Show no progress."""


def ensure(names: Iterable[str], on_progress: Progress = _silent, workers: int = 1) -> None:
    """Build the built-in models among ``names`` that are not cached yet.

    Args:
        names: model names; those that are not built in are ignored.
        on_progress: called with name, steps done, steps in all.
        workers: processes to build in, one thread each; 1 builds in this process.
    """
    wanted = sorted({n for n in names if is_builtin(n)})
    missing = [n for n in wanted if not (model_folder(n) / "config.json").exists()]
    # The largest first, so that no worker is left with it at the end.
    missing.sort(key=lambda n: recipe_of(n).width * recipe_of(n).steps, reverse=True)
    if workers == 1 or len(missing) < 2:
        for name in missing:
            build(name, on_progress)
        return
    context = get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(workers, context) as pool:
        steps = manager.Queue()
        listener = threading.Thread(target=_forward, args=(steps, on_progress))
        listener.start()
        try:
            for built in [pool.submit(_build_in_worker, name, steps) for name in missing]:
                built.result()
        finally:
            steps.put(None)
            listener.join()


def build(name: str, on_progress: Progress = _silent) -> Path:
    """Build one model unless it is cached; safe beside other builders, never half-written."""
    folder = model_folder(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if (folder / "config.json").exists():
            return folder
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _pretrain(name, scratch, on_progress)
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _pretrain(name: str, folder: Path, on_progress: Progress) -> None:
    """Train tokenizer and model and save both as a Hugging Face folder."""
    recipe = recipe_of(name)
    if isinstance(recipe, PromptRecipe):
        build_prompt_model(recipe, folder, lambda step: on_progress(name, step, recipe.steps))
    else:
        _learn_language(recipe, folder, lambda step: on_progress(name, step, recipe.steps))


def _learn_language(recipe: Recipe, folder: Path, on_step: Callable[[int], None]) -> None:
    """Tokenizer and model of the built-in world's language."""
    samples = pretraining_text(recipe.samples_per_domain, recipe.seed)
    texts = [sample.text for sample in samples]
    tokenizer = train_tokenizer(recipe.tokenizer, recipe.vocab_size, texts)
    plain = [Sample("", text) for text in texts]  # every position is scored
    text_tokenizer = TextTokenizer.from_pretrained(tokenizer)
    data = TokenizedDataset(text_tokenizer, plain, MAX_LENGTH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        width, layers = recipe.width, recipe.layers
        model = tiny_causal_lm(
            recipe.architecture, vocab_size=len(tokenizer), width=width, layers=layers
        )
        settings = TrainingConfig(recipe.steps, recipe.batch_size, recipe.learning_rate)
        lm = CausalLM(model, text_tokenizer, recipe.architecture, len(tokenizer), MAX_LENGTH)
        train(lm, data, settings, seed=recipe.seed, on_step=lambda step, _: on_step(step))
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def _build_in_worker(name: str, steps: Queue[tuple[str, int, int] | None]) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    build(name, lambda *step: steps.put(step))


def _forward(steps: Queue[tuple[str, int, int] | None], on_progress: Progress) -> None:
    """Hand steps from the workers on until the end marker."""
    while (step := steps.get()) is not None:
        on_progress(*step)

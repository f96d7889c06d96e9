"""The models that a run config names, and the aligners into their vocabularies.

All of it can be rebuilt from the config, so it is cached per process: in simulation one process
plays several clients in turn, in deployment every message may come to a new one. What must survive
between messages is in ``Context.state`` and the run folder.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from fedfuse.algorithms.local_model import LocalModel
from fedfuse.builtin.models import build, cache_root, is_builtin, recipe_of
from fedfuse.config.knowledge import KnowledgeConfig
from fedfuse.config.model import ModelConfig
from fedfuse.config.run_config import RunConfig, model_of_partition
from fedfuse.data.sample import SharedSamples
from fedfuse.errors import check
from fedfuse.factory.data import load_splits
from fedfuse.knowledge.aligner import KnowledgeAligner
from fedfuse.models.causal_lm import CausalLM, add_lora, load_causal_lm
from fedfuse.models.devices import resolve_device
from fedfuse.models.loading import load_tokenizer, quantization_options
from fedfuse.tokenizers.dataset import TokenizedDataset


def load_model(
    name: str, *, dtype: str = "float32", device: str = "auto", quantization: str = ""
) -> CausalLM:
    """Load a base model and its tokenizer: a folder, a hub id, or ``builtin:NAME``.

    For the arguments and errors see ``models.causal_lm.load_causal_lm``. A built-in model is built
    first where it is not cached.
    """
    base = str(build(name)) if is_builtin(name) else name
    return load_causal_lm(base, dtype=dtype, device=device, quantization=quantization)


@lru_cache(maxsize=8)
def load_local_model(
    role: str, name: str, model: ModelConfig, shared: SharedSamples, max_length: int, seed: int
) -> LocalModel:
    """A model with a fresh adapter on the samples that everybody has.

    Args:
        role: ``server`` or ``client``: one process may play both. All clients with one base model
            share one, and bring their adapters along.
        name: base model.
        model: options of loading and of the adapter.
        shared: public set, test set and questions; cached by identity.
        max_length: ``data.max-length`` of the run.
        seed: seed of the run.

    Raises:
        FedfuseError: for a model that cannot be loaded or takes less than ``max_length``.
    """
    quantization = "" if model.quantization == "none" else model.quantization
    lm = load_model(name, dtype=model.dtype, device=model.device, quantization=quantization)
    lm = replace(lm, autocast=model.autocast)
    # One length for all: models that cut a text at different places would disagree on its rows.
    expected = f"at most {lm.max_length}, the limit of model {name!r}"
    check("data.max-length", max_length, expected, max_length <= lm.max_length)
    lm = add_lora(lm, model.lora, gradient_checkpointing=model.gradient_checkpointing, seed=seed)
    return LocalModel(
        lm,
        public=shared.public,
        test=shared.test,
        questions=shared.questions,
        max_length=max_length,
    )


def check_model(name: str) -> None:
    """Refuse a base model that cannot take part, without loading its weights.

    Raises:
        FedfuseError: for a built-in name, folder or hub id that does not exist, or a tokenizer
            without a fast form.
    """
    if is_builtin(name):
        recipe_of(name)
    else:
        load_tokenizer(name)


def base_models(config: RunConfig, clients: int) -> list[str]:
    """Base models of the server and of each client."""
    names = (model_of_partition(config.clients.model, number) for number in range(clients))
    return [config.server.model, *names]


def check_inputs(config: RunConfig, clients: int) -> None:
    """Check devices, models and data of a run without loading a model.

    Raises:
        FedfuseError: for data that cannot be split, or models that do not exist.
    """
    for model in (config.server, config.clients):
        device = resolve_device(model.device)
        if model.quantization != "none":
            quantization_options(model.quantization, device, torch.float16)
    for name in dict.fromkeys(base_models(config, clients)):
        check_model(name)
    load_splits(config.data, config.seed, clients)


def new_aligner(
    local_model: LocalModel,
    knowledge: KnowledgeConfig,
    public: TokenizedDataset | None = None,
    cache: Path | None = None,
) -> KnowledgeAligner:
    """Aligner of others' knowledge to a model's vocabulary; tables are cached on disk."""
    return KnowledgeAligner(
        local_model.tokenizer,
        (public or local_model.public).samples,
        local_model.max_length,
        knowledge,
        cache or cache_root() / "tables",
    )

"""The models that a run config names, and the aligners into their vocabularies.

All of it can be rebuilt from the config, so it is cached per process: in simulation one process
plays several clients in turn, in deployment every message may come to a new one. What must survive
between messages is in ``Context.state`` and the run folder.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from fedfuse.algorithms.local_model import LocalModel
from fedfuse.algorithms.teacher import Teacher
from fedfuse.builtin.models import build, cache_root, is_builtin, model_folder, recipe_of
from fedfuse.config.knowledge import KnowledgeConfig
from fedfuse.config.model import (
    KNOWLEDGE,
    ModelConfig,
    can_learn,
    is_endpoint,
    is_knowledge_file,
    parse_endpoint,
)
from fedfuse.config.run_config import RunConfig, derive_seed, model_configs, model_of_partition
from fedfuse.data.blind import blind_questions
from fedfuse.data.sample import Sample, SharedSamples
from fedfuse.errors import FedfuseError, check
from fedfuse.factory.data import load_splits, shared_samples
from fedfuse.http_service import check_key
from fedfuse.knowledge.aligner import KnowledgeAligner
from fedfuse.knowledge.archive import KnowledgeArchive
from fedfuse.knowledge.endpoint import EndpointSource
from fedfuse.knowledge.extract import ModelSource
from fedfuse.knowledge.source import KnowledgeSource
from fedfuse.models.adapter_folder import weights_fingerprint
from fedfuse.models.causal_lm import DTYPES, CausalLM, add_lora, load_causal_lm
from fedfuse.models.frozen_layers import frozen_layers
from fedfuse.models.kept_states import KeptStates
from fedfuse.models.loading import load_tokenizer
from fedfuse.models.placement import placement_options
from fedfuse.models.states_file import StatesFolder
from fedfuse.models.trial import check_trains
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tokenizers.load import load_tokenizer as named_tokenizer
from fedfuse.tokenizers.tokenizer import TextTokenizer


def load_model(
    name: str,
    *,
    dtype: str = "float32",
    device: str = "auto",
    quantization: str = "",
    device_map: str = "",
) -> CausalLM:
    """Load a base model and its tokenizer: a folder, a hub id, or ``builtin:NAME``.

    For the arguments and errors see ``models.causal_lm.load_causal_lm``. A built-in model is built
    first where it is not cached.
    """
    base = str(build(name)) if is_builtin(name) else name
    return load_causal_lm(
        base, dtype=dtype, device=device, quantization=quantization, device_map=device_map
    )


@lru_cache(maxsize=8)
def load_local_model(
    role: str, name: str, model: ModelConfig, shared: SharedSamples, max_length: int, seed: int
) -> LocalModel:
    """A model with a fresh adapter, or a teacher, on the samples that everybody has.

    Args:
        role: ``server`` or ``client``: one process may play both. All clients with one base model
            share one, and bring their adapters along.
        name: base model.
        model: options of loading and of the adapter.
        shared: public set, test set and questions; cached by identity.
        max_length: ``data.max-length`` of the run.
        seed: seed of the run.

    Raises:
        FedfuseError: for a model that cannot be loaded or trained, or takes less than
            ``max_length``.
    """
    if not can_learn(name):
        return load_teacher(name, model, shared, max_length)[0]
    lm = load_base(name, model, max_length)
    lm = add_lora(lm, model.lora, gradient_checkpointing=model.gradient_checkpointing, seed=seed)
    check_trains(lm)
    lm = replace(lm, kept=_kept_states(lm, model.states_cache))
    return LocalModel(
        lm,
        public=shared.public,
        test=shared.test,
        questions=shared.questions,
        max_length=max_length,
    )


def _kept_states(lm: CausalLM, gib: float) -> KeptStates | None:
    """Where the states of a model's frozen layers are kept; None where all its layers run."""
    layers = frozen_layers(lm.name, lm.model, lm.vocab_size, lm.device) if gib else None
    if layers is None:
        return None
    folder = StatesFolder(cache_root() / "states", int(gib * 2**30))
    base = weights_fingerprint(lm.name) or lm.name
    return KeptStates(layers, lm.model, base, lm.vocab_size, folder)


def load_base(name: str, model: ModelConfig, max_length: int) -> CausalLM:
    """A model as a run uses it, without an adapter.

    Raises:
        FedfuseError: as ``load_local_model``.
    """
    lm = load_model(
        name,
        dtype=model.dtype,
        device=model.device,
        quantization=loading_option(model.quantization),
        device_map=loading_option(model.device_map),
    )
    # One length for all: models that cut a text at different places would disagree on its rows.
    expected = f"at most {lm.max_length}, the limit of model {name!r}"
    check("data.max-length", max_length, expected, max_length <= lm.max_length)
    return replace(lm, autocast=model.autocast)


def loading_option(value: str) -> str:
    """A loading option as a Python caller gives it: empty for ``none``."""
    return "" if value == "none" else value


def _load_source(name: str, model: ModelConfig) -> tuple[KnowledgeArchive, KnowledgeSource]:
    """Where a teacher's knowledge is, and what answers for the teacher."""
    if is_knowledge_file(name):
        archive = KnowledgeArchive.read(_knowledge_file(name))
        return archive, archive
    tokenizer = tokenizer_of(name, model.tokenizer)
    digest = hashlib.sha256(f"{name} {tokenizer.fingerprint}".encode()).hexdigest()[:16]
    archive = KnowledgeArchive(cache_root() / "endpoints" / f"{digest}.knowledge", name, tokenizer)
    return archive, EndpointSource(name, model.endpoint, archive)


def load_teacher(
    name: str, model: ModelConfig, shared: SharedSamples, max_length: int
) -> tuple[Teacher, str]:
    """A model that is asked alone, and the digest of its weights where it is in this process.

    Raises:
        FedfuseError: as ``load_local_model``.
    """
    source: KnowledgeSource
    if can_learn(name):
        lm = load_base(name, model, max_length)
        source, tokenizer, weights = ModelSource(lm), lm.tokenizer, weights_fingerprint(lm.name)
    else:
        archive, source = _load_source(name, model)
        tokenizer, weights = archive.tokenizer, ""
    teacher = Teacher(
        name,
        source,
        tokenizer,
        public=shared.public,
        test=shared.test,
        questions=shared.questions,
        max_length=max_length,
    )
    return teacher, weights


def _knowledge_file(name: str) -> Path:
    return Path(name.removeprefix(KNOWLEDGE)).expanduser()


def tokenizer_of(name: str, tokenizer: str = "") -> TextTokenizer:
    """A model's tokenizer, without its weights; built-in models must be built.

    Args:
        name: of the model.
        tokenizer: of a model behind a URL, as ``ModelConfig.tokenizer``.

    Raises:
        FedfuseError: naming the model, when there is none, or none with a fast form.
    """
    if is_knowledge_file(name):
        return KnowledgeArchive.read(_knowledge_file(name)).tokenizer
    if is_endpoint(name):
        given = tokenizer or parse_endpoint(name)[1]
        return named_tokenizer(str(build(given)) if is_builtin(given) else given)
    return load_tokenizer(str(model_folder(name)) if is_builtin(name) else name)


def check_model(name: str, tokenizer: str = "") -> None:
    """Refuse a base model or teacher that cannot take part, without loading weights or asking it.

    Args:
        name: of the model.
        tokenizer: of a model behind a URL, as ``ModelConfig.tokenizer``.

    Raises:
        FedfuseError: for a built-in name, folder, file or hub id that does not exist, or a
            tokenizer without a fast form.
    """
    if is_endpoint(name):
        parse_endpoint(name)
    if is_builtin(name):
        recipe_of(name)
    else:
        tokenizer_of(name, tokenizer)


def base_models(config: RunConfig, clients: int) -> list[str]:
    """Base models of the server and of each client."""
    names = (model_of_partition(config.clients.model, number) for number in range(clients))
    return [config.server.model, *names]


def check_inputs(config: RunConfig, clients: int) -> None:
    """Check devices, models and data of a run without loading a model.

    Raises:
        FedfuseError: for data that cannot be split, models that do not exist, a file of knowledge
            of other data, a key that is not set, or a run in which no model can learn.
    """
    for model in (config.server, config.clients):
        placement_options(
            model.device,
            DTYPES[model.dtype],
            loading_option(model.quantization),
            loading_option(model.device_map),
        )
    models = model_configs(config, clients)
    for name, model in models.items():
        check_model(name, model.tokenizer)
        if is_endpoint(name):
            check_key(model.endpoint.key_variable)
    check("models", "teachers alone", "one that can learn", any(map(can_learn, models)))
    if config.centralized and not can_learn(config.server.model):
        raise FedfuseError("centralized: expected False with a server.model that does not learn")
    load_splits(config.data, config.seed, clients)
    for name, model in models.items():
        if is_knowledge_file(name):
            _check_file(config, name, model)


def blind_questions_of(config: RunConfig) -> list[Sample]:
    """The blind questions that clients are asked; none with open evidence."""
    if config.fusion.evidence != "blind":
        return []
    blind = load_splits(config.data, config.seed, 1).blind
    return blind_questions(blind, derive_seed(config, "blind")).asked


def _check_file(config: RunConfig, name: str, model: ModelConfig) -> None:
    """Refuse a file that lacks what the run asks of its model.

    The server is asked no blind questions.
    """
    shared = shared_samples(config.data, config.seed)
    teacher = load_local_model("check", name, model, shared, config.data.max_length, config.seed)
    asked = [] if name == config.server.model else blind_questions_of(config)
    for data in (teacher.public, *teacher.texts(asked)):
        teacher.nll(data)


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

"""Teachers, made once per seed and scenario and kept on disk as plain arrays."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from experiments.selection.scenarios import Scenario
from fedfuse.algorithms.local_model import AdapterState, LocalModel
from fedfuse.builtin.text_lexicon import LEXICONS
from fedfuse.config.data import DataConfig
from fedfuse.config.model import AdapterConfig, ModelConfig
from fedfuse.config.run_config import RunConfig, derive_seed, model_of_partition
from fedfuse.config.training import ServerDistillConfig
from fedfuse.data.sample import Sample, Splits
from fedfuse.errors import FedfuseError
from fedfuse.evaluation.scoring import sample_nll
from fedfuse.factory.data import load_splits
from fedfuse.factory.models import load_local_model
from fedfuse.knowledge.contexts import view_contexts
from fedfuse.knowledge.extract import extract
from fedfuse.knowledge.record import Knowledge
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tokenizers.tokenizer import TextTokenizer

# Raised when the code that makes material changes what it makes.
VERSION = 2
# Which classes of TREC each client has; together they have all.
TREC_CLASSES = (("DESC", "ENTY"), ("HUM", "LOC"), ("NUM", "ABBR"))


@dataclass(frozen=True, slots=True)
class ClientTeacher:
    """One client's knowledge of the public set.

    Attributes:
        knowledge: its message.
        tokenizer: its own.
        context_loss: ``[N]`` nats per byte of the prompts.
        domain: of its private data.
    """

    knowledge: Knowledge
    tokenizer: TextTokenizer
    context_loss: ndarray
    domain: str


@dataclass(frozen=True, slots=True)
class Material:
    """Everything that a trial needs.

    Attributes:
        config: the run config.
        scenario: what it is of.
        public: the public samples, with the scenario's noise.
        splits: the world's, without noise.
        candidates: one per client.
        start: the server's adapter before the first round.
        held_out: by domain, ``[C]`` each one's loss on held-out text without noise, the server's
            first, nats per byte: what an oracle knows.
    """

    config: RunConfig
    scenario: Scenario
    public: list[Sample]
    splits: Splits
    candidates: list[ClientTeacher]
    start: AdapterState
    held_out: dict[str, ndarray]


def prepare(seed: int, scenario: Scenario, cache: Path, material: Path | None = None) -> Material:
    """Teachers of a seed and scenario, trained unless they are on disk.

    Raises:
        FedfuseError: for the scenario of real text without the folder that it is in.
    """
    config = config_of(seed, scenario, material)
    splits = splits_of(config, scenario)
    public = with_noise(splits.public, scenario.public_noise, seed)
    world = {"seed": seed, "trec": scenario.trec, "untested": scenario.untested}
    candidates, held_out = [], []
    for number, steps in enumerate(scenario.steps):
        client = local_model("client", model_of_partition(config.clients.model, number), config)
        private = splits.private[number]
        noise = scenario.noise_of(number)
        what = {**world, "client": number, "steps": steps, "noise": noise, "of": scenario.clients}

        def fit(
            client: LocalModel = client,
            private: Sequence[Sample] = private,
            what: dict[str, Any] = what,
        ) -> AdapterState:
            data = client.encode(with_noise(private, what["noise"], seed))
            return trained(client, data, what["steps"], config, what["client"])

        # What is tested has no say in how clients were trained.
        client.adapter = cached(cache, {**what, "untested": ""}, fit)

        def tell(client: LocalModel = client) -> dict[str, ndarray]:
            data = client.encode(public)
            view = view_contexts(client.lm, data)
            known = extract(client.lm, data, config.knowledge.k)
            return known.arrays() | {"context_loss": view.loss}

        told = cached(cache, {**what, "public": scenario.public_noise}, tell)
        context_loss = told.pop("context_loss")

        def test(client: LocalModel = client) -> dict[str, ndarray]:
            return {"loss": losses(client, splits.holdout)}

        held_out.append(cached(cache, {**what, "held-out": True}, test)["loss"])
        known = Knowledge(
            **told, tokenizer=client.tokenizer.fingerprint, public=client.encode(public).fingerprint
        )
        candidates.append(ClientTeacher(known, client.tokenizer, context_loss, private[0].domain))
    server = local_model("server", config.server.model, config)
    server.reset()
    start = server.adapter
    if scenario.server_domains:
        texts = [s for part in splits.private for s in part if s.domain in scenario.server_domains]
        start = cached(
            cache,
            {**world, "server": scenario.server_domains, "steps": scenario.server_steps},
            lambda: trained(server, server.encode(texts), scenario.server_steps, config, "server"),
        )
    server.adapter = start
    table = np.stack([losses(server, splits.holdout), *held_out], axis=1)  # [samples, C]
    domains = np.array([sample.domain for sample in splits.holdout])
    means = {domain: table[domains == domain].mean(0) for domain in splits.domains}
    return Material(config, scenario, public, splits, candidates, start, means)


def config_of(seed: int, scenario: Scenario, material: Path | None) -> RunConfig:
    """The run config of a scenario: the default one, or that of real text."""
    if not scenario.trec:
        return RunConfig(seed=seed)
    if material is None:
        raise FedfuseError(
            f"scenario {scenario.name!r} reads real text; allowed: --material with the folder that "
            "holds datasets/trec and models/stories260K"
        )
    model = ModelConfig(model=str(material / "models" / "stories260K"), lora=AdapterConfig(rank=8))
    return RunConfig(
        seed=seed,
        data=DataConfig(
            source=str(material / "datasets" / "trec"),
            partition="iid",
            private=4000,
            public=400,
            holdout=400,
            test=500,
            questions=0,
        ),
        server=model,
        clients=model,
        # Texts are several times longer than the built-in world's.
        server_distill=ServerDistillConfig(steps=60),
    )


def splits_of(config: RunConfig, scenario: Scenario) -> Splits:
    """The scenario's data: one domain to a client or more."""
    if not scenario.trec:
        splits = load_splits(config.data, config.seed, scenario.clients)
        tested = lambda samples: [s for s in samples if s.domain != scenario.untested]  # noqa: E731
        return replace(
            splits,
            public=tested(splits.public),
            test=tested(splits.test),
            holdout=tested(splits.holdout),
        )
    splits = load_splits(config.data, config.seed, 1)
    of_class: dict[str, list[Sample]] = defaultdict(list)
    for sample in by_class(splits.private[0]):
        of_class[sample.domain].append(sample)
    private = [[s for name in names for s in of_class[name]] for names in TREC_CLASSES]
    return replace(
        splits,
        private=private,
        public=by_class(splits.public),
        test=by_class(splits.test),
        holdout=by_class(splits.holdout),
    )


def by_class(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with their class as domain, by which they are split and scored."""
    return [replace(sample, domain=sample.options[sample.label].strip(" .")) for sample in samples]


@lru_cache(maxsize=8)
def local_model(role: str, model: str, config: RunConfig) -> LocalModel:
    """A model with an untrained adapter."""
    side = config.server if role == "server" else config.clients
    return load_local_model(role, model, side, config.data, config.seed)


def losses(who: LocalModel, samples: Sequence[Sample]) -> ndarray:
    """``[N]`` nats per byte of answer."""
    data = who.encode(samples)
    return sample_nll(who.lm, data) / data.label_bytes


def trained(
    who: LocalModel, data: TokenizedDataset, steps: int, config: RunConfig, name: object
) -> AdapterState:
    """The adapter after one local phase of so many steps."""
    who.reset()
    settings = replace(config.local, steps=steps)
    who.learn(data, settings, seed=derive_seed(config, "local", name, 1))
    return who.adapter


def with_noise(samples: Sequence[Sample], share: float, seed: int) -> list[Sample]:
    """The samples, a share of them with an answer drawn uniformly from their domain's."""
    rng = np.random.default_rng([seed, 77])
    answers = {lexicon.name: lexicon.answers for lexicon in LEXICONS}
    noisy = []
    for sample in samples:
        if rng.random() < share:
            word = answers[sample.domain][rng.integers(len(answers[sample.domain]))]
            sample = replace(sample, answer=f" {word}.")
        noisy.append(sample)
    return noisy


def cached(
    folder: Path, what: dict[str, Any], make: Callable[[], dict[str, ndarray]]
) -> dict[str, ndarray]:
    """Arrays from disk, or made and written."""
    text = json.dumps({"version": VERSION, **what}, sort_keys=True)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".new")
        with scratch.open("wb") as file:
            np.savez(file, allow_pickle=False, **make())  # type: ignore[arg-type]
        scratch.replace(path)
    with np.load(path) as arrays:
        return dict(arrays)

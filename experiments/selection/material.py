"""Teachers, made once per seed and scenario and kept on disk as plain arrays."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from benchmarks.harness import model_of
from experiments.selection.scenarios import Scenario
from fedfuse.algorithms.baseline import LabelPhase, train_baseline
from fedfuse.algorithms.fedmkt import KnowledgeSet
from fedfuse.algorithms.local_model import LocalModel
from fedfuse.builtin.text_lexicon import LEXICONS
from fedfuse.config.data import DataConfig
from fedfuse.config.model import AdapterConfig, ModelConfig
from fedfuse.config.run_config import RunConfig, derive_seed
from fedfuse.config.training import ServerDistillConfig
from fedfuse.data.blind import BlindSamples, blind_questions
from fedfuse.data.sample import Sample, Splits
from fedfuse.errors import FedfuseError
from fedfuse.evaluation.losses import sample_nll
from fedfuse.factory.data import load_splits
from fedfuse.files import atomic_write
from fedfuse.knowledge.contexts import view_contexts
from fedfuse.knowledge.extract import extract
from fedfuse.knowledge.record import Knowledge
from fedfuse.models.causal_lm import AdapterState
from fedfuse.tokenizers.dataset import TokenizedDataset

# Blind samples of a domain.
BLIND = 24
# Half of the default's steps, as there are hundreds of trials.
SHORTER = ServerDistillConfig(steps=140)
# Raised when the code that makes material changes what it makes.
VERSION = 4
# Which classes of TREC each client has; together they have all.
TREC_CLASSES = (("DESC", "ENTY"), ("HUM", "LOC"), ("NUM", "ABBR"))


@dataclass(frozen=True, slots=True)
class Material:
    """Everything that a trial needs."""

    config: RunConfig
    scenario: Scenario
    public: list[Sample]  # with the scenario's noise
    splits: Splits  # without noise
    blind: BlindSamples  # whose answers the server alone knows, with the same noise
    candidates: list[KnowledgeSet]  # one per client
    start: AdapterState  # the server's before the first round
    # By domain, ``[C]`` each one's loss on held-out text without noise, the server's first, nats
    # per byte: what an oracle knows.
    held_out: dict[str, ndarray]


def prepare(seed: int, scenario: Scenario, cache: Path, material: Path | None = None) -> Material:
    """Teachers of a seed and scenario, trained unless they are on disk."""
    config = config_of(seed, scenario, material)
    splits = splits_of(config, scenario)
    public = with_noise(splits.public, scenario.public_noise, seed)
    blind = blind_questions(
        with_noise(splits.blind, scenario.public_noise, seed + 1), derive_seed(config, "blind")
    )
    private = dealt(splits.private, overlap=scenario.overlap)
    world = {"seed": seed, "trec": scenario.trec, "untested": scenario.untested}
    if scenario.overlap:
        world["overlap"] = True

    def prepare_client(number: int) -> tuple[KnowledgeSet, ndarray]:
        """Teacher and its losses on held-out text."""
        client = model_of(config, number)
        steps, noise = scenario.steps[number], scenario.noise_of(number)
        what = {**world, "client": number, "steps": steps, "noise": noise, "of": scenario.clients}

        def fit() -> AdapterState:
            data = client.encode(with_noise(private[number], noise, seed))
            return trained(client, data, steps, config, number)

        def tell() -> dict[str, ndarray]:
            data = client.encode(public)
            view = view_contexts(client.lm, data)
            known = extract(client.lm, data, config.knowledge.k)
            return known.arrays() | {"context_loss": view.loss}

        def answer() -> dict[str, ndarray]:
            return {"logprobs": client.option_logprobs(blind.asked)}

        def test() -> dict[str, ndarray]:
            return {"loss": losses(client, splits.holdout)}

        # What is tested has no say in how clients were trained.
        client.adapter = cached(cache, {**what, "untested": ""}, fit)
        arrays = cached(cache, {**what, "public": scenario.public_noise}, tell)
        context_loss = arrays.pop("context_loss")
        fingerprints = client.tokenizer.fingerprint, client.encode(public).fingerprint
        knowledge = Knowledge(**arrays, tokenizer=fingerprints[0], public=fingerprints[1])
        asked = {**what, "public": scenario.public_noise, "blind": len(blind)}
        options = cached(cache, asked, answer)["logprobs"]
        held_out = cached(cache, {**what, "held-out": True}, test)["loss"]
        return KnowledgeSet(knowledge, client.tokenizer, context_loss, options), held_out

    clients = [prepare_client(number) for number in range(scenario.clients)]
    server = model_of(config, None)
    server.reset()
    if scenario.server_domains:
        texts = [s for part in splits.private for s in part if s.domain in scenario.server_domains]
        server.adapter = cached(
            cache,
            {**world, "server": scenario.server_domains, "steps": scenario.server_steps},
            lambda: trained(server, server.encode(texts), scenario.server_steps, config, "server"),
        )
    noisy = with_noise(splits.holdout, scenario.public_noise, seed + 2)
    about = {**world, "labels": scenario.server_domains, "public": scenario.public_noise}
    start = cached(cache, about, lambda: labels_learned(server, public, noisy, config))
    server.adapter = start
    found = [losses(server, splits.holdout), *(held_out for _, held_out in clients)]
    table = np.stack(found, axis=1)  # [samples, C]
    domains = np.array([sample.domain for sample in splits.holdout])
    means = {domain: table[domains == domain].mean(0) for domain in splits.domains}
    candidates = [teacher for teacher, _ in clients]
    return Material(config, scenario, public, splits, blind, candidates, start, means)


def labels_learned(
    server: LocalModel, public: list[Sample], held_out: list[Sample], config: RunConfig
) -> AdapterState:
    """The server's adapter after it has learned the public labels, as in a federation."""
    seed = derive_seed(config, "server", "public-only")
    phase = LabelPhase(server.encode(public), config.server_distill, seed, public=True)
    train_baseline(server, [phase], 1, server.encode(held_out))
    return server.adapter


def dealt(private: Sequence[list[Sample]], *, overlap: bool) -> list[list[Sample]]:
    """Private samples by client; with an overlap, the first two know half of what the other has."""
    if not overlap:
        return list(private)
    one, other, *rest = private
    return [one + other[: len(other) // 2], other + one[: len(one) // 2], *rest]


def config_of(seed: int, scenario: Scenario, material: Path | None) -> RunConfig:
    """The run config of a scenario: the default one, or that of real text.

    Raises:
        FedfuseError: for real text without the folder that it is in.
    """
    if not scenario.trec:
        return RunConfig(seed=seed, data=DataConfig(blind=BLIND), server_distill=SHORTER)
    if material is None:
        raise FedfuseError(
            f"scenario {scenario.name!r}: expected --material with the folder that holds "
            "datasets/trec and models/stories260K, got none"
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
            blind=4 * BLIND,
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
    splits = load_splits(config.data, config.seed, 1 if scenario.trec else scenario.clients)
    parts = {"public": splits.public, "test": splits.test, "holdout": splits.holdout}
    if not scenario.trec:  # there the options are the classes
        parts["blind"] = splits.blind
    changed: dict[str, Any] = {}
    for name, samples in parts.items():
        tested = [s for s in samples if s.domain != scenario.untested]
        changed[name] = by_class(samples) if scenario.trec else tested
    if scenario.trec:
        private = by_class(splits.private[0])
        changed["private"] = [
            [s for name in names for s in private if s.domain == name] for names in TREC_CLASSES
        ]
    return replace(splits, **changed)


def by_class(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with their class as domain, by which they are split and scored."""
    return [replace(sample, domain=sample.options[sample.label].strip(" .")) for sample in samples]


def losses(who: LocalModel, samples: Sequence[Sample]) -> ndarray:
    """``[N]`` nats per byte of answer."""
    data = who.encode(samples)
    found: ndarray = sample_nll(who.lm, data) / data.label_bytes
    return found


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
        made: dict[str, Any] = make()
        with atomic_write(path) as scratch, scratch.open("wb") as file:
            np.savez(file, allow_pickle=False, **made)
    with np.load(path) as arrays:
        return dict(arrays)

"""Teachers, made once per seed and scenario and kept on disk as plain arrays."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from fedfuse.data.lexicon import LEXICONS
from fedfuse.data.sample import Sample, Splits
from fedfuse.distillation.encoded import EncodedSet
from fedfuse.evaluation.scoring import sample_nats
from fedfuse.flower.config import RunConfig, model_of_partition
from fedfuse.flower.workspace import derive_seed, load_participant, load_splits
from fedfuse.knowledge.extract import extract
from fedfuse.knowledge.prompts import view_prompts
from fedfuse.knowledge.record import Knowledge
from fedfuse.models.participant import AdapterState, Participant
from fedfuse.tokenization.tokenizer import TextTokenizer

# What a client has trained after the default run's three rounds.
STEPS = 450
# Raised when the code that makes material changes what it makes.
VERSION = 1


@dataclass(frozen=True, slots=True)
class Scenario:
    """What differs from the default world.

    Attributes:
        name: in results.
        steps: local training steps of each client in turn; their number is the number of clients.
        private_noise: share of each client's private answers that are random.
        public_noise: share of the public answers that are random.
        server_domains: domains that the server's own adapter was trained on beforehand.
    """

    name: str
    steps: tuple[int, ...] = (STEPS,) * 4
    private_noise: tuple[float, ...] = (0.0,) * 4
    public_noise: float = 0.0
    server_domains: tuple[str, ...] = ()


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("default"),
        Scenario("label-noise", public_noise=0.4),
        # A good client, two of little training, and one whose private labels are mostly wrong.
        Scenario("unequal", steps=(450, 100, 30, 450), private_noise=(0.0, 0.0, 0.0, 0.7)),
        # The server knows two domains better than the clients that hold them.
        Scenario("expert-server", steps=(450, 450, 30, 30), server_domains=("court", "workshop")),
        # Eight clients, two to a domain, every second one barely trained.
        Scenario("twins", steps=(450,) * 4 + (60,) * 4, private_noise=(0.0,) * 8),
    )
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One client's knowledge of the public set.

    Attributes:
        knowledge: what it sends.
        tokenizer: its own.
        prompt_loss: ``[N]`` nats per byte.
        domain: of its private data.
    """

    knowledge: Knowledge
    tokenizer: TextTokenizer
    prompt_loss: ndarray
    domain: str


@dataclass(frozen=True, slots=True)
class Material:
    """All that a selector's trial needs.

    Attributes:
        config: the run config.
        public: the public samples, with the scenario's noise.
        splits: the world's, without noise.
        candidates: one per client.
        start: the server's adapter before the first round.
        best: by domain, the column of whoever has the smallest loss on held-out text without noise;
            0 is the server.
    """

    config: RunConfig
    public: list[Sample]
    splits: Splits
    candidates: list[Candidate]
    start: AdapterState
    best: dict[str, int]


def prepare(seed: int, scenario: Scenario, cache: Path) -> Material:
    """Teachers of a seed and scenario, trained unless they are on disk."""
    config = RunConfig(seed=seed)
    splits = load_splits(config.data, seed, len(scenario.steps))
    public = with_noise(splits.public, scenario.public_noise, seed)
    candidates, held_out = [], []
    for number, steps in enumerate(scenario.steps):
        client = participant("client", model_of_partition(config.clients.model, number), seed)
        private = splits.private[number]
        noise = scenario.private_noise[number]
        what = {"client": number, "steps": steps, "noise": noise, "of": len(scenario.steps)}

        def fit(
            client: Participant = client,
            private: Sequence[Sample] = private,
            what: dict[str, Any] = what,
        ) -> AdapterState:
            data = client.encode(with_noise(private, what["noise"], seed))
            return trained(client, data, what["steps"], config, what["client"])

        client.adapter = cached(cache, {"seed": seed, **what}, fit)

        def tell(client: Participant = client) -> dict[str, ndarray]:
            data = client.encode(public)
            view = view_prompts(client.model, data)
            known = extract(client.model, data, config.knowledge.k)
            return known.arrays() | {"prompt_loss": view.loss}

        told = cached(cache, {"seed": seed, **what, "public": scenario.public_noise}, tell)
        prompt_loss = told.pop("prompt_loss")

        def test(client: Participant = client) -> dict[str, ndarray]:
            return {"loss": losses(client, splits.holdout)}

        held_out.append(cached(cache, {"seed": seed, **what, "held-out": True}, test)["loss"])
        known = Knowledge(
            **told, tokenizer=client.tokenizer.fingerprint, public=client.encode(public).fingerprint
        )
        candidates.append(Candidate(known, client.tokenizer, prompt_loss, private[0].domain))
    server = participant("server", config.server.model, seed)
    server.reset()
    start = server.adapter
    if scenario.server_domains:
        texts = [s for part in splits.private for s in part if s.domain in scenario.server_domains]
        start = cached(
            cache,
            {"seed": seed, "server": scenario.server_domains},
            lambda: trained(server, server.encode(texts), STEPS, config, "server"),
        )
    server.adapter = start
    table = np.stack([losses(server, splits.holdout), *held_out], axis=1)  # [samples, C]
    domains = np.array([sample.domain for sample in splits.holdout])
    best = {d: int(table[domains == d].mean(0).argmin()) for d in splits.domains}
    return Material(config, public, splits, candidates, start, best)


@lru_cache(maxsize=8)
def participant(role: str, model: str, seed: int) -> Participant:
    """A model with an untrained adapter."""
    config = RunConfig(seed=seed)
    side = config.server if role == "server" else config.clients
    return load_participant(role, model, side, config.data, seed)


def losses(who: Participant, samples: Sequence[Sample]) -> ndarray:
    """``[N]`` nats per byte of answer."""
    data = who.encode(samples)
    return sample_nats(who.model, data, who.tokenizer.vocab_size) / data.label_bytes


def trained(
    who: Participant, data: EncodedSet, steps: int, config: RunConfig, name: object
) -> AdapterState:
    """The adapter after one local phase of so many steps."""
    who.reset()
    settings = replace(config.local.settings(), steps=steps)
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

"""A federation of two by calling the steps of the algorithm, as by messages, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy import ndarray
from safetensors.numpy import load_file

from fedfuse.algorithms import fedmkt
from fedfuse.algorithms.fedmkt import KnowledgeSet
from fedfuse.config.node import parse_client
from fedfuse.config.run_config import RunConfig, derive_seed, flatten, parse
from fedfuse.data.blind import blind_questions
from fedfuse.distillation.optimizer_state import TrainingState
from fedfuse.distillation.training import MAX_TOKENS
from fedfuse.evaluation.acceptance import AcceptanceResult
from fedfuse.evaluation.options import OptionLogprobs
from fedfuse.evaluation.scoring import Score
from fedfuse.factory.data import load_splits, private_samples, shared_samples
from fedfuse.factory.models import load_local_model, new_aligner
from fedfuse.fusion.rules import find_rule
from fedfuse.knowledge.payload import decode, encode_full
from tests.federations import FAST, federate, lines
from tests.federations import tiny_builtin as tiny_builtin

ROUNDS = 2
KEYS: dict[str, Any] = {
    "rounds": ROUNDS,
    "baselines": False,
    "data__domains": 2,
    "data__blind": 4,
    "fusion__evidence": "blind",
}


class Plain:
    """Server and two clients without Flower; like a client, each brings its adapter along."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        data = shared_samples(config.data, config.seed), config.data.max_length, config.seed
        self.server = load_local_model("server", config.server.model, config.server, *data)
        self.server.reset()
        nodes = [{"partition-id": i, "num-partitions": 2} for i in range(2)]
        clients = [parse_client(node, flatten(config)) for node in nodes]
        self.models = [
            load_local_model("client", c.config.clients.model, c.config.clients, *data)
            for c in clients
        ]
        for model in self.models:
            model.reset()
        self.private = [
            m.encode(private_samples(c).train) for m, c in zip(self.models, clients, strict=True)
        ]
        blind = load_splits(config.data, config.seed, 1).blind
        self.blind = blind_questions(blind, derive_seed(config, "blind"))
        self.states: dict[object, TrainingState | None] = {}

    def sent(self, known: KnowledgeSet, options: OptionLogprobs | None = None) -> KnowledgeSet:
        """Knowledge as the codec leaves it."""
        rules = self.config.knowledge
        return KnowledgeSet(
            decode(encode_full(known.knowledge, rules.logprob_bits, rules.top_p)),
            known.tokenizer,
            options=options,
        )

    def run_round(self) -> None:
        """Algorithm 1."""
        config, rule = self.config, find_rule("dual-min-ce").function
        received = []
        for i, model in enumerate(self.models):
            seed = derive_seed(config, "local", i)
            _, self.states["local", i], known = fedmkt.local_step(
                *(model, self.private[i], model.public, config.knowledge.k, config.local),
                seed=seed,
                state=self.states.get(("local", i)),
            )
            answers = model.option_logprobs(self.blind.asked)
            received.append((str(i), self.sent(known, answers)))
        distilled, known = fedmkt.server_step(
            *(self.server, self.server.public, received, rule),
            *(new_aligner(self.server, config.knowledge), config.knowledge, config.server_distill),
            seed=derive_seed(config, "server", "distill"),
            state=self.states.get("server"),
            blind=self.blind,
        )
        self.states["server"] = distilled.state
        for i, model in enumerate(self.models):
            distilled = fedmkt.client_step(
                *(model, model.public, self.sent(known), rule),
                *(new_aligner(model, config.knowledge), config.knowledge, config.client_distill),
                seed=derive_seed(config, "distill", i),
                state=self.states.get(("distill", i)),
                replay=self.private[i],
                beside_base=True,
            )
            self.states["distill", i] = distilled.state


def check_adapter(folder: Path, name: str, adapter: dict[str, ndarray]) -> None:
    saved = load_file(folder / name / "adapter" / "adapter_model.safetensors")
    assert len(saved) == len(adapter)
    for key, value in saved.items():
        [mine] = [v for k, v in adapter.items() if k.replace(".default", "") == key]
        np.testing.assert_array_equal(value, mine)


def check_scores(folder: Path, name: str, scores: dict[str, Score]) -> None:
    of_model = [x for x in lines(folder, "metrics") if (x["model"], x["round"]) == (name, ROUNDS)]
    assert {x["domain"]: x["loss"] for x in of_model} == {d: s.loss for d, s in scores.items()}


@pytest.mark.usefixtures("tiny_builtin")
def test_a_client_that_cannot_be_aligned_is_left_out() -> None:
    given = {key.replace("__", "."): value for key, value in KEYS.items()}
    plain = Plain(parse({**FAST, **given}))
    good, other = plain.models
    known = KnowledgeSet(good.knowledge(plain.config.knowledge.k), good.tokenizer)
    fewer = other.encode(other.public.samples[:3])
    foreign = KnowledgeSet(other.knowledge(plain.config.knowledge.k, fewer), other.tokenizer)
    refused = {}
    distilled, _ = fedmkt.server_step(
        *(plain.server, plain.server.public, [("0", known), ("1", foreign)]),
        find_rule("dual-min-ce").function,
        *(new_aligner(plain.server, plain.config.knowledge), plain.config.knowledge),
        plain.config.server_distill,
        seed=0,
        refuse=lambda client, error: refused.update({client: str(error)}),
    )
    assert distilled.teachers == ["0"]
    assert list(refused) == ["1"]
    assert "knowledge.num_rows: expected" in refused["1"]


@pytest.mark.usefixtures("tiny_builtin")
def test_memory_that_ran_out_is_not_forgotten_by_a_rollback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {key.replace("__", "."): value for key, value in KEYS.items()}
    plain = Plain(parse({**FAST, **given}))
    result = AcceptanceResult(keep=False, changes={})

    def roll_back(learn: Callable[[], object], seed: int) -> tuple[object, AcceptanceResult]:
        loss, learned = learn()
        return (loss, {**learned, MAX_TOKENS: np.array(64)}), result

    monkeypatch.setattr(plain.server, "train_with_rollback", roll_back)
    distilled, _ = fedmkt.server_step(
        *(plain.server, plain.server.public, [], find_rule("dual-min-ce").function),
        *(new_aligner(plain.server, plain.config.knowledge), plain.config.knowledge),
        plain.config.server_distill,
        seed=0,
        acceptance_seed=0,
    )
    assert distilled.state == {MAX_TOKENS: np.array(64)}


@pytest.mark.usefixtures("tiny_builtin")
def test_the_steps_are_what_the_strategy_does(tmp_path: Path) -> None:
    folder = federate(tmp_path, clients=2, **KEYS)
    given = {key.replace("__", "."): value for key, value in KEYS.items()}
    plain = Plain(parse({**FAST, **given}))
    for _ in range(ROUNDS):
        plain.run_round()
    check_adapter(folder, "server", plain.server.adapter)
    check_scores(folder, "server", plain.server.score())
    for i, model in enumerate(plain.models):
        check_adapter(folder, f"clients/{i}", model.adapter)
        check_scores(folder, str(i), model.score())

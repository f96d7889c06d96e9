"""Blind evidence in a whole federation: who repeats the labels earns nothing by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from clients.knowledge import KnowledgeClient
from experiments.trust.liars import WholeLabel
from experiments.trust.lies import poison, told
from fedfuse.config.run_config import derive_seed, parse
from fedfuse.data.blind import blind_questions
from fedfuse.errors import FedfuseError
from fedfuse.factory.data import load_splits
from fedfuse.flower.samples import unpack_held_out, unpack_samples
from fedfuse.knowledge.record import Knowledge
from fedfuse.plugins import class_name
from fedfuse.tokenizers.dataset import TokenizedDataset
from tests.federations import FAST, federate, lines

KEYS: dict[str, Any] = {
    "rounds": 1,
    "baselines": False,
    "data__domains": 2,
    "data__blind": 8,
    "fusion__evidence": "blind",
}
LIAR = "2"
README = Path(__file__).parents[2] / "README.md"


class Watched(KnowledgeClient):
    """Keeps all that it is sent."""

    requests: list[RecordDict] = []  # noqa: RUF012

    def __init__(self, context: Context, request: RecordDict) -> None:
        Watched.requests.append(request)
        super().__init__(context, request)


def trusted(folder: Path, client: str) -> float:
    """Largest share of a client in what the server learns of a domain."""
    return max(
        line["share"]
        for line in lines(folder, "teacher_shares")
        if line["direction"] == "up" and line["teacher"] == client
    )


@pytest.mark.parametrize("rule", ["dual-min-ce", "nearest-neighbours", "min-ce"])
def test_a_client_that_repeats_the_labels(tmp_path: Path, rule: str) -> None:
    given = {**KEYS, "clients": 3, "client": class_name(WholeLabel), "fusion__server_rule": rule}

    believed = federate(tmp_path / "open", **{**given, "fusion__evidence": "open"})
    blind = federate(tmp_path / "blind", **given)

    assert trusted(believed, LIAR) == 1
    assert trusted(blind, LIAR) < 1


class Wrong(KnowledgeClient):
    """Answers as well as it can, and is certain of wrong tokens in what it shows."""

    def tell(self, knowledge: Knowledge, public: TokenizedDataset) -> Knowledge:
        wrong = poison(public.rows.token, np.random.default_rng(0))[:, None]
        nearly_all = np.full(wrong.shape, 1 - 1e-6)
        return told(knowledge, wrong, nearly_all, np.full(len(wrong), -20.0))


def test_the_readmes_strategy_copes_with_clients_that_are_not_believed(tmp_path: Path) -> None:
    blocks = README.read_text().split("```python\n")
    [code] = [block.split("```")[0] for block in blocks if "class Likelihood" in block]
    names: dict[str, Any] = {"__name__": __name__}
    exec(code, names)
    strategy = class_name(names["Likelihood"])

    folder = federate(
        tmp_path, clients=2, client=class_name(Wrong), **{**KEYS, "strategy": strategy}
    )

    up = [x for x in lines(folder, "teacher_shares") if x["direction"] == "up"]
    assert {x["share"] for x in up if x["teacher"] in ("0", "1")} == {0}


def test_clients_are_sent_no_blind_answer(tmp_path: Path) -> None:
    Watched.requests.clear()
    keys = {**KEYS, "baselines": True, "data__holdout": 3}
    federate(tmp_path, clients=2, client=class_name(Watched), **keys)

    given = {key.replace("__", "."): value for key, value in keys.items()}
    config = parse({**FAST, **given})
    samples = load_splits(config.data, config.seed, 1).blind
    questions = blind_questions(samples, derive_seed(config, "blind")).asked
    sent = [json.loads(str(r["questions"]["json"])) for r in Watched.requests if "questions" in r]
    assert len(sent) == 2  # once for each client, with its registration
    for groups in sent:
        assert [prompt for _, prompts in groups for prompt, _ in prompts] == [
            question.prompt for question in questions
        ]
    splits = load_splits(config.data, config.seed, 1)
    secret = {sample.text for sample in (*questions, *splits.blind, *splits.holdout)}
    told = [unpack_samples(r) for r in Watched.requests if "samples" in r]
    assert len(told) == 2
    for shared in told:
        texts = {s.text for s in (*shared.public, *shared.test, *shared.questions)}
        assert texts >= {sample.text for sample in splits.public}
        assert not texts & secret
    # Held-out samples come when nothing is learned any more.
    late = [r for r in Watched.requests if "held-out" in r]
    assert Watched.requests[-2:] == late
    assert [s.text for s in unpack_held_out(late[0])] == [s.text for s in splits.holdout]


def test_answers_that_cannot_be_asked_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FedfuseError, match=r"blind samples: expected different answers.* got 1 "):
        federate(tmp_path, clients=2, **{**KEYS, "data__domains": 1, "data__blind": 1})
    assert not any(tmp_path.iterdir())

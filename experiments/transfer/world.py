"""Teachers and students of the built-in world, and what a teacher knows, answer by answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from fedfuse.builtin.models import build
from fedfuse.builtin.text_world import World, answer_text
from fedfuse.config.data import DataConfig
from fedfuse.config.model import AdapterConfig
from fedfuse.config.training import TrainingConfig
from fedfuse.data.sample import Sample, Splits
from fedfuse.distillation.training import train
from fedfuse.evaluation.losses import sample_nll
from fedfuse.knowledge.extract import extract
from fedfuse.knowledge.record import Knowledge
from fedfuse.models.causal_lm import CausalLM, add_lora, load_causal_lm
from fedfuse.sparse import SparseDistribution, safe_log
from fedfuse.tokenizers.dataset import TokenizedDataset

# Teacher and student by kind: whose tokens are the coarser ones. Tokens of an answer: opt and words
# 2.0, server 3.6, llama 5.9.
PAIRS = {
    "coarse_fine": ("opt", "llama"),
    "one_to_one": ("opt", "words"),
    "fine_coarse": ("server", "opt"),
    "finest_coarse": ("llama", "opt"),
}
DATA = DataConfig(private=2000, public=300, holdout=0, questions=0)
TEACHER = TrainingConfig(steps=700, learning_rate=5e-3)
ADAPTER = AdapterConfig()
# Entries of the teacher's rows: so many that hardly anything is lost by leaving some out.
K = 256


@dataclass(frozen=True)
class Teaching:
    """A teacher on the public samples of a seed.

    Attributes:
        lm: the teacher.
        answers: ``[A]`` all answers of the world.
        probs: ``[N, A]`` its probability of each answer on each sample, made to sum to one.
        enumerated: mean probability of all answers together before that: what the enumeration sees.
        excess: its loss on the test set above the entropy floor, nats per byte.
    """

    lm: CausalLM
    answers: tuple[str, ...]
    probs: Float64[ndarray, "samples answers"]
    enumerated: float
    excess: float


@lru_cache(maxsize=2)
def splits(seed: int) -> Splits:
    """The world's samples of a seed."""
    return World(seed).splits(DATA, 1)


@lru_cache(maxsize=8)
def _base(name: str) -> str:
    return str(build(f"builtin:{name}"))


def new_model(name: str, seed: int) -> CausalLM:
    """A built-in model with a fresh adapter."""
    return add_lora(load_causal_lm(_base(name), device="cpu"), ADAPTER, seed=seed)


def encode(lm: CausalLM, samples: list[Sample]) -> TokenizedDataset:
    """Samples as a model sees them."""
    return TokenizedDataset(lm.tokenizer, samples, DATA.max_length)


@lru_cache(maxsize=4)
def untrained_excess(name: str, seed: int) -> float:
    """``excess`` of a new model."""
    return excess(new_model(name, seed), seed)


def excess(lm: CausalLM, seed: int) -> float:
    """Mean over domains of the test loss above the entropy floor, nats per byte."""
    found = splits(seed)
    data = encode(lm, list(found.test))
    nll, domain = sample_nll(lm, data), np.array([s.domain for s in data.samples])
    assert found.floor
    losses = [
        nll[domain == d].sum() / data.label_bytes[domain == d].sum() - floor
        for d, floor in found.floor.loss.items()
    ]
    return float(np.mean(losses))


@lru_cache(maxsize=3)
def teaching(name: str, seed: int) -> Teaching:
    """Train a teacher on everybody's private samples, and ask it for every answer."""
    found, lm = splits(seed), new_model(name, seed)
    private = [sample for part in found.private for sample in part]
    train(lm, encode(lm, private), TEACHER, seed=seed)
    public = list(found.public)
    answers = tuple(
        answer_text(a) for domain in World(seed).domains for a in domain.lexicon.answers
    )
    asked = [Sample(sample.prompt, answer) for sample in public for answer in answers]
    logs = -sample_nll(lm, encode(lm, asked)).reshape(len(public), len(answers))
    probs = np.exp(logs)
    total = probs.sum(axis=1, keepdims=True)
    enumerated = float(total.mean())
    return Teaching(lm, answers, probs / total, enumerated, excess(lm, seed))


@lru_cache(maxsize=6)
def knowledge(name: str, seed: int, k: int) -> Knowledge:
    """A teacher's next-token distributions on the public samples."""
    lm = teaching(name, seed).lm
    return extract(lm, encode(lm, list(splits(seed).public)), k)


def exact(taught: Teaching, student: TokenizedDataset) -> SparseDistribution:
    """The teacher's answers in the student's tokens: what an alignment without loss would teach."""
    tokens = answer_tokens(student, taught.answers)
    rows, k = len(student.rows.token), len(taught.answers)
    target = SparseDistribution.empty(rows, k, tail_logprob=-np.inf)
    for sample in range(len(student)):
        first, stop = student.rows.offsets[sample : sample + 2]
        label = student.rows.token[first:stop].tolist()
        for place, row in enumerate(range(first, stop)):
            mass: dict[int, float] = {}
            for p, spelled in zip(taught.probs[sample], tokens, strict=True):
                if spelled[:place] == label[:place] and len(spelled) > place:
                    mass[spelled[place]] = mass.get(spelled[place], 0.0) + p
            ranked = sorted(mass.items(), key=lambda item: -item[1])
            values = np.array([p for _, p in ranked])
            target.indices[row, : len(ranked)] = [token for token, _ in ranked]
            target.logprobs[row, : len(ranked)] = safe_log(values / values.sum())
            target.weight[row] = 1.0
    return target


def answer_tokens(student: TokenizedDataset, answers: tuple[str, ...]) -> list[list[int]]:
    """Each answer as the student's tokenizer cuts it behind a prompt."""
    samples = [Sample(student.samples[0].prompt, answer) for answer in answers]
    data = TokenizedDataset(student.tokenizer, samples, DATA.max_length)
    bounds = zip(data.rows.offsets[:-1], data.rows.offsets[1:], strict=True)
    return [data.rows.token[a:b].tolist() for a, b in bounds]


def drawn_answers(taught: Teaching, seed: int, each: int) -> list[Sample]:
    """Public prompts with answers drawn from the teacher."""
    rng = np.random.default_rng([seed, 5])
    public = splits(seed).public
    drawn: Int64[ndarray, "samples each"] = np.stack(
        [rng.choice(len(taught.answers), each, p=p) for p in taught.probs]
    )
    return [
        Sample(sample.prompt, taught.answers[answer], sample.domain)
        for sample, row in zip(public, drawn, strict=True)
        for answer in row.tolist()
    ]

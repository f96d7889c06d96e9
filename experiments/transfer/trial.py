"""One student, taught in one way: how much of its excess is gone after a fixed training."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from experiments.transfer.world import (
    DATA,
    PAIRS,
    K,
    drawn_answers,
    encode,
    exact,
    excess,
    knowledge,
    new_model,
    splits,
    teaching,
    untrained_excess,
)
from fedfuse.config.knowledge import KnowledgeConfig
from fedfuse.config.training import Objective, TrainingConfig
from fedfuse.distillation.targets import Teacher
from fedfuse.distillation.training import train
from fedfuse.events import EventDistribution, TeacherTargets, stack_events
from fedfuse.knowledge.aligner import KnowledgeAligner
from fedfuse.knowledge.record import Knowledge
from fedfuse.sparse import SparseDistribution
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tokenizers.tokenizer import TextTokenizer

# Steps of a student. Where the teacher's tokens are finest, the exact targets take longer too.
STEPS, MORE_STEPS, BATCH_SIZE = 500, {"finest_coarse": 800}, 32
# "events-16" has as many entries a row as clients send by default.
PROJECTIONS = {
    "events": KnowledgeConfig(k=K),
    "events-16": KnowledgeConfig(),
    "alm": KnowledgeConfig(k=K, alignment="alm"),
    "events+alm": KnowledgeConfig(k=K, alignment="events+alm"),
    "unaligned": KnowledgeConfig(k=K, alignment="exact-boundary"),
    "fedmkt": KnowledgeConfig(
        k=K, alignment="dtw", duplicate_tokens="first", unaligned_positions="one-hot"
    ),
}
# Answers drawn from the teacher for each prompt.
DRAWN = {"hard-1": 1, "hard-16": 16}
METHODS = ("exact", *PROJECTIONS, *DRAWN, "labels")


def run_trial(pair: str, method: str, rate: float, seed: int) -> list[dict[str, Any]]:
    """Excess of the student before and after, and how near its targets are to the exact ones."""
    teacher, student = PAIRS[pair]
    taught, lm = teaching(teacher, seed), new_model(student, seed)
    data, targets = encode(lm, list(splits(seed).public)), None
    measures: dict[str, float] = {}
    if method in DRAWN:
        data = encode(lm, drawn_answers(taught, seed, DRAWN[method]))
    elif method != "labels":
        right = exact(taught, data)
        projected: SparseDistribution | EventDistribution = right
        if method != "exact":
            rules = PROJECTIONS[method]
            known = knowledge(teacher, seed, rules.k)
            projected = aligned(rules, known, taught.lm.tokenizer, data, DATA.max_length)
        measures = compare(projected, right)
        targets = as_targets(projected)
    before = untrained_excess(student, seed)
    weight = 1.0 if targets is None else 0.0
    config = TrainingConfig(
        MORE_STEPS.get(pair, STEPS),
        BATCH_SIZE,
        learning_rate=rate,
        objective=Objective(label_weight=weight),
    )
    train(lm, data, config, seed=seed, teacher=targets)
    about = {"pair": pair, "method": method, "rate": rate, "seed": seed}
    result = {"before": before, "after": excess(lm, seed), "teacher": taught.excess}
    found = result | {"enumerated": taught.enumerated} | measures
    return [about | {name: round(value, 5) for name, value in found.items()}]


def aligned(
    config: KnowledgeConfig,
    known: Knowledge,
    source: TextTokenizer,
    data: TokenizedDataset,
    max_length: int,
) -> SparseDistribution | EventDistribution:
    """Knowledge in another model's tokens on the rows of ``data``; the paper's has no tail."""
    aligner = KnowledgeAligner(data.tokenizer, data.samples, max_length, config)
    found = aligner(known, source)
    return found if config.alignment != "dtw" else found.without_tail()


def as_targets(found: SparseDistribution | EventDistribution) -> Teacher:
    """As training takes them."""
    if isinstance(found, SparseDistribution):
        return found
    nobody = SparseDistribution.empty(found.num_rows, 1, tail_logprob=0.0)
    return TeacherTargets(
        nobody, stack_events([(np.arange(found.num_rows), found)], found.num_rows)
    )


def compare(
    found: SparseDistribution | EventDistribution, right: SparseDistribution
) -> dict[str, float]:
    """How near targets are to the exact ones, on rows that have any.

    Returns:
        ``taught``: share of rows with a teacher; where some have one: ``total_variation``, median
        over rows, over the classes of the targets; ``never_used``, mean probability of classes
        without any token that the student's tokenizer would use there.
    """
    rows = np.flatnonzero((found.weight > 0) & np.isfinite(found.logprobs).any(axis=1))
    taught = {"taught": len(rows) / found.num_rows}
    if not len(rows):
        return taught
    distance, unused = np.zeros(len(rows)), np.zeros(len(rows))
    for i, row in enumerate(rows.tolist()):
        expected, mass = (np.exp(of.logprobs[row].astype(np.float64)) for of in (right, found))
        some = expected > 0
        own = np.zeros(found.k + 1)  # the tail is the last
        np.add.at(own, slots_of(found, row, right.indices[row][some]), expected[some])
        tail = np.exp(float(found.tail_logprob[row]))
        distance[i] = 0.5 * (np.abs(mass - own[:-1]).sum() + abs(tail - own[-1]))
        unused[i] = mass[own[:-1] == 0].sum()
    return taught | {
        "total_variation": float(np.median(distance)),
        "never_used": float(unused.mean()),
    }


def slots_of(
    found: SparseDistribution | EventDistribution, row: int, tokens: Int64[ndarray, " m"]
) -> Int64[ndarray, " m"]:
    """``[m]`` the classes of tokens on a row; the tail is class k."""
    if isinstance(found, SparseDistribution):
        here = (found.indices[row] == tokens[:, None]) & np.isfinite(found.logprobs[row])
    else:
        place = found[row : row + 1].places(tokens[None, :])[0][:, None]
        here = (found.start[row] <= place) & (place < found.stop[row])
    slots: Int64[ndarray, " m"] = np.where(here.any(axis=1), here.argmax(axis=1), found.k)
    return slots

"""One student, taught in one way: how much of its excess is gone after a fixed training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy import ndarray

from experiments.transfer.world import (
    DATA,
    PAIRS,
    K,
    Teaching,
    drawn_answers,
    encode,
    exact,
    excess,
    new_model,
    splits,
    teaching,
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

STEPS = 300
PROJECTIONS = {
    "events": KnowledgeConfig(),
    "alm": KnowledgeConfig(alignment="alm"),
    "events+alm": KnowledgeConfig(alignment="events+alm"),
    "unaligned": KnowledgeConfig(alignment="exact-boundary"),
    "fedmkt": KnowledgeConfig(
        alignment="dtw", duplicate_tokens="first", unaligned_positions="one-hot"
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
        projected = project(method, taught, data)
        measures = compare(projected, exact(taught, data))
        targets = as_targets(projected)
    before = excess(lm, seed)
    weight = 1.0 if targets is None else 0.0
    config = TrainingConfig(STEPS, learning_rate=rate, objective=Objective(label_weight=weight))
    train(lm, data, config, seed=seed, teacher=targets)
    about = {"pair": pair, "method": method, "rate": rate, "seed": seed}
    result = {"before": before, "after": excess(lm, seed), "teacher": taught.excess}
    found = result | {"enumerated": taught.enumerated} | measures
    return [about | {name: round(value, 5) for name, value in found.items()}]


def project(
    method: str, taught: Teaching, data: TokenizedDataset
) -> SparseDistribution | EventDistribution:
    """The teacher's knowledge on the student's rows."""
    if method == "exact":
        return exact(taught, data)
    config = replace(PROJECTIONS[method], k=K)
    return aligned(config, taught.knowledge, taught.lm.tokenizer, data, DATA.max_length)


def aligned(
    config: KnowledgeConfig,
    knowledge: Knowledge,
    source: TextTokenizer,
    data: TokenizedDataset,
    max_length: int,
) -> SparseDistribution | EventDistribution:
    """Knowledge in another model's tokens on the rows of ``data``; the paper's has no tail."""
    aligner = KnowledgeAligner(data.tokenizer, data.samples, max_length, config)
    found = aligner(knowledge, source)
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
        expected = np.exp(right.logprobs[row].astype(np.float64))
        own = np.zeros(found.k)
        mass = np.exp(found.logprobs[row].astype(np.float64))
        for token, p in zip(right.indices[row].tolist(), expected.tolist(), strict=True):
            if p > 0 and (slot := slot_of(found, row, token)) is not None:
                own[slot] += p
        tail = abs(np.exp(float(found.tail_logprob[row])) - (1 - own.sum()))
        distance[i] = 0.5 * (np.abs(mass - own).sum() + tail)
        unused[i] = mass[own == 0].sum()
    return taught | {
        "total_variation": float(np.median(distance)),
        "never_used": float(unused.mean()),
    }


def slot_of(found: SparseDistribution | EventDistribution, row: int, token: int) -> int | None:
    """The class of a token on a row; None in the tail."""
    if isinstance(found, SparseDistribution):
        here: ndarray = (found.indices[row] == token) & np.isfinite(found.logprobs[row])
    else:
        place = found[row : row + 1].places(np.array([[token]]))[0, 0]
        here = (found.start[row] <= place) & (place < found.stop[row])
    slots = np.flatnonzero(here)
    return int(slots[0]) if len(slots) else None

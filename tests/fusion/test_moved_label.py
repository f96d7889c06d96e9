"""Whom a sample is taught by does not depend on its own label, in however many tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy import ndarray

from fedfuse.builtin.text_world import World
from fedfuse.config.data import DataConfig
from fedfuse.config.gate import LABEL_FREE, GateConfig
from fedfuse.config.knowledge import KnowledgeConfig
from fedfuse.data.sample import Sample
from fedfuse.fusion.fuser import KnowledgeFuser
from fedfuse.fusion.gating.features import build_features, neighbour_accuracy
from fedfuse.fusion.rules import RULES
from fedfuse.fusion.teacher_stats import StackedStats
from fedfuse.knowledge.aligner import KnowledgeAligner
from fedfuse.knowledge.contexts import view_contexts
from fedfuse.knowledge.extract import extract
from tests.conftest import MAX_LENGTH, Tiny

MOVED = 5
GATE = GateConfig(folds=3, steps=5, neighbours=4)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Two domains; answers of different lengths."""
    return World(1, 2).splits(DataConfig(private=2, public=12, holdout=0, test=1), 2).public


@pytest.fixture(scope="module")
def moved(samples: list[Sample]) -> list[Sample]:
    """The same but for the label of one, which has another number of tokens."""
    old = samples[MOVED]
    other = next(s.answer for s in samples if s.answer != old.answer)
    return [replace(s, answer=other + old.answer) if s is old else s for s in samples]


def evidence(
    tiny: Callable[[str], Tiny], samples: list[Sample], rule: str
) -> tuple[StackedStats, ndarray]:
    """What a rule would see of two teachers with other tokenizers, with its weights by sample."""
    learner, *teachers = (tiny(name) for name in ("gpt2", "llama", "gpt_neox"))
    data = learner.encode(samples)
    aligner = KnowledgeAligner(learner.tokenizer, samples, MAX_LENGTH, KnowledgeConfig())
    fuser = KnowledgeFuser(aligner, extract(learner, data, 8), view_contexts(learner, data))
    others = [
        fuser.align_teacher(
            extract(t, t.encode(samples), 8),
            t.tokenizer,
            view_contexts(t, t.encode(samples)).loss,
        )
        for t in teachers
    ]
    seen = []

    def watch(stats: StackedStats) -> ndarray:
        weights = RULES[rule].make(GATE, 0)(stats)
        seen.append((stats, stats.to_samples(weights)))
        return weights

    fuser.fuse(others, watch, 8)
    return seen[0]


@pytest.mark.parametrize("rule", ["learned-gate", "nearest-neighbours"])
def test_a_samples_own_label_has_no_say(
    tiny: Callable[[str], Tiny], samples: list[Sample], moved: list[Sample], rule: str
) -> None:
    (before, weights), (after, weights_after) = (
        evidence(tiny, of, rule) for of in (samples, moved)
    )

    assert len(before.usable) != len(after.usable)  # another number of label rows
    assert before.label_likelihood[MOVED].tolist() != after.label_likelihood[MOVED].tolist()
    others = np.arange(len(samples)) != MOVED
    found = [
        build_features(
            stats, LABEL_FREE, neighbour_accuracy(stats, others[None], GATE.neighbours), 1
        )[0, MOVED]
        for stats in (before, after)
    ]
    np.testing.assert_array_equal(*found)
    assert found[0].any()
    np.testing.assert_allclose(weights[MOVED], weights_after[MOVED], rtol=1e-6)

"""From knowledge to fused targets: who is better teaches, and nobody else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fedfuse.config.knowledge import KnowledgeConfig
from fedfuse.data.sample import Sample
from fedfuse.distillation.loss import DistillationTargets
from fedfuse.errors import FedfuseError
from fedfuse.fusion.fuser import FusedTargets, KnowledgeFuser
from fedfuse.fusion.rules import Rule, dual_min_ce, uniform
from fedfuse.fusion.teacher_shares import teacher_shares
from fedfuse.fusion.teacher_stats import StackedStats
from fedfuse.fusion.weights import RowWeights
from fedfuse.knowledge.aligner import KnowledgeAligner
from fedfuse.knowledge.contexts import ContextView
from fedfuse.knowledge.extract import extract
from fedfuse.knowledge.record import Knowledge
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.conftest import MAX_LENGTH, Tiny

Make = Callable[[str], Tiny]
Known = tuple[Knowledge, TextTokenizer]


class Class:
    """One learner (gpt2) and three teachers, of three tokenizers."""

    def __init__(self, tiny: Make, public: list[Sample]) -> None:
        models = {name: tiny(name) for name in ("gpt2", "llama", "gpt_neox", "opt")}
        known = [(extract(m, m.encode(public), 4), m.tokenizer) for m in models.values()]
        self.own, self.teachers = known[0][0], known[1:]
        self.public = public
        config = KnowledgeConfig(alignment="exact-boundary")
        self.aligner = KnowledgeAligner(known[0][1], public, MAX_LENGTH, config)
        self.fuser = KnowledgeFuser(self.aligner, self.own)
        self.heard = [self.fuser.align_teacher(*teacher) for teacher in self.teachers]

    def fused_targets(
        self,
        losses: list[list[float]],
        rule: Rule = dual_min_ce,
        order: tuple[int, ...] = (0, 1, 2),
    ) -> FusedTargets:
        """Targets where everybody has the losses given, ``[C][N]``."""
        places = [0, *(1 + i for i in order)]
        given = np.stack([np.float32(losses[place]) for place in places], axis=1)
        others = [self.heard[i] for i in order]
        return self.fuser.fuse(others, lambda stats: rule(replace(stats, loss=given)), 4)


@pytest.fixture
def school(tiny: Make, public: list[Sample]) -> Class:
    return Class(tiny, public)


def test_a_sample_that_no_teacher_beats_carries_no_distillation(school: Class) -> None:
    """FedMKT, Algorithm 2; sample i is beaten by teacher i % 4, the fourth being nobody."""
    n = len(school.public)
    losses = [[1.0] * n, [2.0] * n, [2.0] * n, [2.0] * n]
    for i in range(n):
        if i % 4 < 3:
            losses[1 + i % 4][i] = 0.5
    fused_targets = school.fused_targets(losses)
    taught = fused_targets.weights.argmax(1)
    assert [int(t) for t in taught] == [1 + i % 4 if i % 4 < 3 else 0 for i in range(n)]
    assert fused_targets.weights.sum(1).tolist() == [float(i % 4 < 3) for i in range(n)]
    owner = school.own.sample_of_row
    assert (fused_targets.teacher.weight[owner % 4 == 3] == 0).all()
    for number, (knowledge, tokenizer) in enumerate(school.teachers):
        rows = owner % 4 == number
        alone = school.aligner(knowledge, tokenizer)
        np.testing.assert_array_equal(fused_targets.teacher.weight[rows], alone.weight[rows])
        used = rows & (alone.weight > 0)
        assert used.any()
        # One-hot trust is the teacher himself.
        np.testing.assert_allclose(
            np.exp(fused_targets.teacher.logprobs[used]), np.exp(alone.logprobs[used]), atol=1e-6
        )
        np.testing.assert_allclose(
            np.exp(fused_targets.teacher.tail_logprob[used]),
            np.exp(alone.tail_logprob[used]),
            atol=1e-6,
        )


def test_the_losses_are_those_that_knowledge_proves(school: Class) -> None:
    seen: list[np.ndarray] = []

    def watch(stats: StackedStats) -> RowWeights:
        seen.append(stats.loss)
        return dual_min_ce(stats)

    school.fuser.fuse(school.heard, watch, 4)
    known = [(school.own, school.aligner.tokenizer), *school.teachers]
    right = [school.aligner.proven(*one).loss for one in known]
    np.testing.assert_array_equal(seen[0], np.stack(right, axis=1))


def test_the_order_of_teachers_does_not_matter(school: Class) -> None:
    rng = np.random.default_rng(0)
    losses = rng.random((4, len(school.public))).tolist()
    first, second = school.fused_targets(losses), school.fused_targets(losses, order=(2, 0, 1))
    np.testing.assert_array_equal(first.weights[:, [0, 3, 1, 2]], second.weights)
    np.testing.assert_array_equal(first.teacher.weight, second.teacher.weight)
    used = first.teacher.weight > 0
    np.testing.assert_allclose(
        np.exp(first.teacher.logprobs[used]), np.exp(second.teacher.logprobs[used]), atol=1e-7
    )


def test_everybody_on_every_sample(school: Class) -> None:
    losses = [[1.0] * len(school.public)] * 4
    fused_targets = school.fused_targets(losses, uniform)
    assert (fused_targets.weights[:, 1:] == np.float32(1 / 3)).all()
    sizes = fused_targets.teacher.weight
    aligned = sum(school.aligner(k, t).weight for k, t in school.teachers)
    np.testing.assert_allclose(sizes, aligned / 3, atol=1e-6)


def test_the_papers_rule_has_no_tail(school: Class) -> None:
    """The kept entries are all there is; who teaches what stays the same."""
    both = [school.fuser.fuse(school.heard, uniform, 4, tail=tail) for tail in (True, False)]
    ours, papers = (x.teacher for x in both)
    assert np.isneginf(papers.tail_logprob).all()
    assert np.isfinite(ours.tail_logprob[ours.weight > 0]).all()
    np.testing.assert_array_equal(ours.logprobs, papers.logprobs)
    taught = papers.weight > 0
    probs = [DistillationTargets.from_sparse(x, "cpu").probs[taught] for x in (ours, papers)]
    np.testing.assert_allclose(probs[1].sum(1), 1, atol=1e-6)
    assert (probs[0].sum(1) < 0.999).all()


def test_nobody_to_learn_from(school: Class) -> None:
    fused_targets = school.fuser.fuse([], dual_min_ce, 4)
    assert fused_targets.weights.shape == (len(school.public), 1)
    assert not fused_targets.teacher.weight.any()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda losses: losses[:, 1:],
        lambda losses: losses[:-1],
        lambda losses: np.zeros_like(losses) - 0.1,
        lambda losses: np.full_like(losses, np.nan),
        lambda losses: np.full_like(losses, np.inf),
    ],
)
def test_a_rule_that_returns_anything_else_is_refused(
    school: Class, wrong: Callable[[np.ndarray], np.ndarray]
) -> None:
    with pytest.raises(
        FedfuseError, match=r"expected .* shape \(12, 4\) or \(\d+, 4\), not negative, got"
    ):
        school.fuser.fuse(school.heard, lambda stats: wrong(stats.loss), 4)


def test_weights_of_rows_are_those_of_the_targets(school: Class) -> None:
    """A rule that trusts one teacher on each sample's first row and nobody on the others."""
    offsets = school.own.offsets
    first = np.zeros((school.own.num_rows, 4), dtype=np.float32)
    first[offsets[:-1], 2] = 1
    fused_targets = school.fuser.fuse(school.heard, lambda _: first, 4)
    np.testing.assert_allclose(fused_targets.weights[:, 2], 1 / np.diff(offsets), rtol=1e-6)
    others = np.ones(school.own.num_rows, dtype=bool)
    others[offsets[:-1]] = False
    assert not fused_targets.teacher.weight[others].any()
    with pytest.raises(FedfuseError, match="fusion rule: expected finite weights"):
        school.fuser.fuse(school.heard, lambda _: first[:-1], 4)


def test_evidence_is_of_the_knowledge_heard(school: Class) -> None:
    """Evidence of a rule: own first, context losses where they are known."""
    seen: list[StackedStats] = []

    def watch(stats: StackedStats) -> RowWeights:
        seen.append(stats)
        return np.zeros_like(stats.label_logprob)

    n = len(school.public)
    view = ContextView(np.full(n, 0.5, dtype=np.float32), np.ones((n, 3), dtype=np.float32))
    fuser = KnowledgeFuser(school.aligner, school.own, view)
    told = np.arange(n, dtype=np.float32)
    heard = [
        fuser.align_teacher(*school.teachers[0], told),
        fuser.align_teacher(*school.teachers[1]),
    ]
    fuser.fuse(heard, watch, 4)
    (stats,) = seen
    assert stats.candidates == 3
    np.testing.assert_array_equal(stats.context_loss[:, 0], view.loss)
    np.testing.assert_array_equal(stats.context_loss[:, 1], told)
    assert np.isnan(stats.context_loss[:, 2]).all()
    assert stats.state is view.state
    kept = (school.own.indices == school.aligner.rows.token[:, None]).any(1)
    assert kept.any()
    np.testing.assert_allclose(
        stats.label_logprob[kept, 0], school.own.label_logprob[kept], atol=1e-5
    )


def test_shares_by_hand() -> None:
    samples = [Sample("", "a", "bank"), Sample("", "b", "bank"), Sample("", "c", "clinic")]
    weights = np.array([[0, 1, 0], [0, 0, 0], [0, 0.25, 0.75]], dtype=np.float32)
    assert teacher_shares(samples, weights, ["x", "y"]) == {
        ("bank", "x"): 0.5,
        ("bank", "y"): 0.0,
        ("bank", "none"): 0.5,
        ("clinic", "x"): 0.25,
        ("clinic", "y"): 0.75,
        ("clinic", "none"): 0.0,
    }


@pytest.mark.parametrize("base", [0.0, 99.0])
def test_who_shows_less_than_the_base_knows_does_not_teach(school: Class, base: float) -> None:
    samples = school.public
    school.fuser.compare_with_base(samples, np.full(len(samples), base))

    found = school.fuser.fuse(school.heard, uniform, 4)

    np.testing.assert_allclose(found.weights[:, 1:].sum(1), base > 0, rtol=1e-6)
    assert found.teacher.weight.any() == (base > 0)

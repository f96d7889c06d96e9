"""Rules by name: how much to trust each candidate on each sample or label row.

A rule is called once a round with the ``StackedStats`` of C candidates, column 0 the learning model
itself, and returns weights ``[T, C]`` per label row or ``[N, C]`` per sample. A row of zeros means
"no teacher here"; weight in column 0 holds the model where it is.

A rule of your own is a function that the run config names as ``module:function``::

    def softmin(stats):
        weights = np.exp(-stats.loss)  # [N, C] nats per byte
        return weights / weights.sum(1, keepdims=True)

One that needs settings or learns is a class: it is made once for each model that uses it, from the
run's ``GateConfig`` and a seed; see ``LearningRule``. ``rule`` gives either a name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from numpy import ndarray

from fedfuse.config.gate import GateConfig
from fedfuse.errors import FedfuseError
from fedfuse.fusion.gating.features import neighbour_accuracy
from fedfuse.fusion.gating.learned_gate import GateUpdate, LearnedGate
from fedfuse.fusion.gating.networks import BatchedPerceptron, dynamic_selection
from fedfuse.fusion.teacher_stats import StackedStats
from fedfuse.fusion.weights import RowWeights, Weights, zero_if_only_self

Rule = Callable[[StackedStats], ndarray]
R = TypeVar("R", bound=Callable[..., Any])


@runtime_checkable
class LearningRule(Protocol):
    """A rule that learns from round to round.

    Attributes:
        last: result of the last call's learning; None before the first.
    """

    last: GateUpdate | None

    def __call__(self, stats: StackedStats) -> ndarray:
        """Learn from a round's evidence, then weigh."""

    def state(self) -> dict[str, ndarray]:
        """All that was learned, as flat arrays."""

    def load(self, state: Mapping[str, ndarray]) -> None:
        """Go on where ``state`` was taken."""


@dataclass(frozen=True, slots=True)
class NamedRule:
    """A rule that a run config can name.

    Attributes:
        name: as in the run config.
        reference: the paper that it is from.
        function: the rule, or a class of rules.
        reads_contexts: whether it looks at ``context_loss`` or ``state`` of ``StackedStats``, which
            are measured for it then.
    """

    name: str
    reference: str
    function: Callable[..., Any]
    reads_contexts: bool = False

    @property
    def learns(self) -> bool:
        """Whether it keeps a state, for which all rounds need the same samples."""
        return hasattr(self.function, "load")

    def make(self, gate: GateConfig, seed: int) -> Rule:
        """The rule for one model; a new one if it is a class."""
        made: Rule = self.function
        return self.function(gate, seed) if isinstance(self.function, type) else made


RULES: dict[str, NamedRule] = {}


def rule(name: str, *, reference: str, reads_contexts: bool = False) -> Callable[[R], R]:
    """Register a rule under a name; for the arguments see ``NamedRule``.

    Raises:
        FedfuseError: for a name that is taken.
    """

    def register(function: R) -> R:
        if name in RULES:
            raise FedfuseError(f"fusion rule: expected a new name, got {name!r}")
        RULES[name] = NamedRule(name, reference, function, reads_contexts)
        return function

    return register


def find_rule(name: str) -> NamedRule:
    """A registered rule, or your own function or class as ``module:function``.

    Raises:
        FedfuseError: when there is none of that name, or it cannot be called.
    """
    if name in RULES:
        return RULES[name]
    expected = f"fusion rule: expected {', '.join(RULES)} or module:function, got {name!r}"
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise FedfuseError(expected)
    try:
        found = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise FedfuseError(f"{expected}: {error}") from error
    if not callable(found):
        raise FedfuseError(f"{expected}, which is {found!r}")
    registered = (entry for entry in RULES.values() if entry.function is found)
    return next(registered, NamedRule(name, "", found))


@rule("dual-min-ce", reference="FedMKT, arXiv 2406.02224, Algorithm 2")
def dual_min_ce(stats: StackedStats) -> RowWeights:
    """The teacher of smallest loss, if it beats the learning model's own.

    One-hot, or zeros where no teacher is strictly better. Ties between teachers go to the first.
    """
    return _best_teacher(stats, stats.loss[:, 0])


@rule("min-ce", reference="MinCE of FuseLLM, arXiv 2401.10491")
def min_ce(stats: StackedStats) -> RowWeights:
    """The teacher of smallest loss, even if the own is smaller.

    The first of equals; none where no teacher has a finite loss.
    """
    return _best_teacher(stats, np.inf)


def _best_teacher(stats: StackedStats, limit: ndarray | float) -> RowWeights:
    """All weight on the teacher of smallest loss, where that is below a limit."""
    weights = np.zeros_like(stats.loss)
    if stats.candidates > 1:
        best = stats.loss[:, 1:].argmin(1) + 1
        samples = np.arange(stats.samples)
        weights[samples, best] = stats.loss[samples, best] < limit
    return stats.to_rows(weights)


@rule("avg-ce", reference="AvgCE of FuseLLM, arXiv 2401.10491")
def avg_ce(stats: StackedStats) -> RowWeights:
    """Every candidate, the learning model too, by its score ``exp(-CE)``."""
    score = stats.label_likelihood
    total = score.sum(1, keepdims=True)
    return stats.to_rows(score / np.where(total > 0, total, 1))


@rule("uniform", reference="baseline: every teacher equally, on every sample")
def uniform(stats: StackedStats) -> RowWeights:
    """Every teacher equally, on every sample."""
    weights = np.zeros_like(stats.loss)
    if stats.candidates > 1:
        weights[:, 1:] = 1 / (stats.candidates - 1)
    return stats.to_rows(weights)


@rule("labels-only", reference="baseline: no teacher")
def labels_only(stats: StackedStats) -> RowWeights:
    """No teacher on any row."""
    return stats.to_rows(np.zeros_like(stats.loss))


@rule(
    "nearest-neighbours",
    reference="local accuracy of Woods et al., IEEE TPAMI 19(4), 1997, with probabilities",
    reads_contexts=True,
)
class NearestNeighbours:
    """The teacher that gave the labels of the most similar samples the most probability.

    One-hot, or zeros where the learning model itself did best, or as well: taught what it says
    already it would learn nothing from the labels either. A sample's own label has no say in its
    weights. Differs from the paper: a mean of probabilities in place of a share of right answers,
    since of several right answers a label shows one.
    """

    def __init__(self, gate: GateConfig, seed: int) -> None:
        self._neighbours = gate.neighbours

    def __call__(self, stats: StackedStats) -> RowWeights:
        """Weigh by the record on similar samples."""
        everything = np.ones((1, stats.samples), dtype=bool)
        record = neighbour_accuracy(stats, everything, self._neighbours)[0, ..., 1]
        best = np.where(stats.available, record, -np.inf).argmax(1)
        weights = np.zeros_like(stats.loss)
        weights[np.arange(stats.samples), best] = best > 0
        return stats.to_rows(weights)


@rule("untrained-gate", reference="public code of Fusion-X, arXiv 2505.23844")
class UntrainedGate:
    """The paper's perceptron with random weights, drawn anew at every call."""

    def __init__(self, gate: GateConfig, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._threshold = gate.threshold

    def __call__(self, stats: StackedStats) -> RowWeights:
        """Weigh by a new network."""
        gate = BatchedPerceptron(stats.candidates, [int(self._rng.integers(2**31))])
        with torch.no_grad():
            scores = torch.from_numpy(stats.label_likelihood.T)[None, :, :, None]
            log_gate = gate(scores, torch.from_numpy(stats.available.T))[0]
            weights = dynamic_selection(log_gate.mT.exp(), self._threshold).numpy()
        return stats.to_rows(zero_if_only_self(weights))


rule("learned-gate", reference="Fusion-X, arXiv 2505.23844", reads_contexts=True)(LearnedGate)


def oracle(column: Int64[ndarray, " samples"]) -> Rule:
    """For data whose source is known: the one right candidate of each sample, 0 for no teacher."""

    def one_hot(stats: StackedStats) -> RowWeights:
        weights: Weights = np.zeros_like(stats.loss)
        weights[np.arange(len(column)), column] = 1
        return stats.to_rows(zero_if_only_self(weights))

    return one_hot

"""Variants that are tried: fixed rules, baselines, the learned gate, and it with one change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from jaxtyping import Int64
from numpy import ndarray

from fedfuse.config.gate import FEATURES, LABEL_FREE, GateConfig
from fedfuse.fusion.rules import Rule, find_rule, oracle

# Column of the candidate that knows each sample's domain best: ``[N]``, asked anew in every round.
RightSource = Callable[[], Int64[ndarray, " samples"]]
# Makes a rule from the run's seed and the right source, which the oracle alone looks at.
Maker = Callable[[int, RightSource], Rule]


@dataclass(frozen=True, slots=True)
class Variant:
    """A rule and what is done with it.

    Attributes:
        rule: makes it; None learns from labels alone.
        order: which order of batches; another one tells how much of a result is the order's.
        promote: keep a round only if it made no domain worse (``fedfuse.evaluation.acceptance``).
        consolidate: hold weights that matter where the server is trusted itself.
    """

    rule: Maker | None
    order: int = 0
    promote: bool = False
    estimate_ewc: bool = True


BASE = GateConfig()
# The paper's: its network, threshold and beta, its training loss, without folds.
PAPER = GateConfig(network="perceptron", loss="distillation", threshold=0.15, feedback=0.5, folds=1)


def named(name: str, gate: GateConfig = BASE) -> Variant:
    """A rule by its name."""
    return Variant(lambda seed, right_source: find_rule(name).make(gate, seed))


def learned(gate: GateConfig) -> Variant:
    """The learned gate."""
    return named("learned-gate", gate)


def features(*names: str) -> GateConfig:
    """The gate with other features."""
    return replace(BASE, features=", ".join(names))


def all_knowing(seed: int, right_source: RightSource) -> Rule:
    """The oracle: trust whoever of those present knows a sample's domain best."""
    return lambda stats: oracle(right_source())(stats)


# On every scenario.
MAIN: dict[str, Variant] = {
    "min-ce": named("min-ce"),
    "uniform": named("uniform"),
    "untrained": named("untrained-gate"),
    "oracle": Variant(all_knowing),
    "trained": learned(BASE),
}
# Where labels can be believed, where they cannot, and where the server knows something to lose.
MORE: dict[str, Variant] = {
    "dual-min-ce": named("dual-min-ce"),
    "promoted": replace(learned(BASE), promote=True),
    "not-held": replace(learned(BASE), estimate_ewc=False),
    "oracle-again": Variant(all_knowing, order=1),
}
MORE_ON = ("default", "label-noise", "expert-server")
# Where labels mislead most, so that what they are used for matters.
ABLATED = ("label-noise",)
ABLATIONS: dict[str, Variant] = {
    "labels-only": Variant(None),
    "avg-ce": named("avg-ce"),
    "paper": learned(PAPER),
    "paper-network": learned(replace(PAPER, loss="labels", folds=BASE.folds)),
    "paper-loss": learned(replace(BASE, loss="distillation")),
    "no-folds": learned(replace(BASE, folds=1)),
    "with-label-likelihood": learned(features(*FEATURES)),
    "per-row": learned(replace(BASE, granularity="row")),
    **{f"feedback-{b:g}": learned(replace(BASE, feedback=b)) for b in (0.0, 0.5)},
    **{f"threshold-{t:g}": learned(replace(BASE, threshold=t)) for t in (0.0, 0.15, 0.5)},
    **{
        f"no-{name}": learned(features(*(f for f in LABEL_FREE if f != name)))
        for name in LABEL_FREE
    },
}
VARIANTS = MAIN | MORE | ABLATIONS

"""Variants that are tried: fixed rules, baselines, the learned gate, and it with one change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

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
    """A rule and what is done with it."""

    rule: Maker | None  # None learns from labels alone
    order: int = 0  # of batches; another one tells how much of a result is the order's
    promote: bool = False  # keep a round only if it made no domain worse (evaluation.acceptance)
    estimate_ewc: bool = True  # hold weights that matter where the server is trusted itself
    blind: bool = True  # evidence of blind questions; else of the labels that everybody knows


# What strategy ``fedfuse`` goes by on the server.
DEFAULT_RULE = "neighbours"
BASE = GateConfig()
# The paper's: its network, threshold and beta, its training loss, without folds.
PAPER = GateConfig(network="perceptron", loss="distillation", threshold=0.15, feedback=0.5, folds=1)


def named(name: str, gate: GateConfig = BASE) -> Variant:
    """A rule by its name."""
    return Variant(lambda seed, right_source: find_rule(name).make(gate, seed))


def learned(gate: GateConfig = BASE, **changes: Any) -> Variant:
    """The learned gate, with some changes."""
    return named("learned-gate", replace(gate, **changes))


def shown(variant: Variant) -> Variant:
    """The same with evidence of the public labels, as in the papers."""
    return replace(variant, blind=False)


def all_knowing(seed: int, right_source: RightSource) -> Rule:
    """The oracle: trust whoever of those present knows a sample's domain best."""
    return lambda stats: oracle(right_source())(stats)


# On every scenario.
MAIN: dict[str, Variant] = {
    "min-ce": shown(named("min-ce")),
    "uniform": named("uniform"),
    "untrained": shown(named("untrained-gate")),
    "neighbours": named("nearest-neighbours"),
    "neighbours-shown": shown(named("nearest-neighbours")),
    "oracle": Variant(all_knowing),
    "trained": learned(),
    "trained-shown": shown(learned()),
}
# Where labels can be believed, where they cannot, and where the server knows something to lose.
MORE: dict[str, Variant] = {
    "dual-min-ce": shown(named("dual-min-ce")),
    "dual-min-ce-blind": named("dual-min-ce"),
    "promoted": replace(learned(), promote=True),
    "not-held": replace(learned(), estimate_ewc=False),
    "oracle-again": Variant(all_knowing, order=1),
}
MORE_ON = ("default", "label-noise", "expert-server")
# Where labels mislead most, so that what they are used for matters.
ABLATED = ("label-noise",)
ABLATIONS: dict[str, Variant] = {
    "labels-only": Variant(None),
    "avg-ce": shown(named("avg-ce")),
    "paper": shown(learned(PAPER)),
    "paper-network": shown(learned(PAPER, loss="labels", folds=BASE.folds)),
    "paper-loss": learned(loss="distillation"),
    "with-label-likelihood": learned(features=", ".join(FEATURES)),
    "no-neighbour-accuracy": learned(
        features=", ".join(name for name in LABEL_FREE if name != "neighbour-accuracy")
    ),
}
VARIANTS = MAIN | MORE | ABLATIONS

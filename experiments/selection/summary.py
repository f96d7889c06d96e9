"""What the selection experiment's cells come to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import hypot, sqrt
from statistics import mean
from typing import Any

import numpy as np

from experiments import harness
from experiments.selection.variants import ABLATED, ABLATIONS, DEFAULT_RULE, MAIN, VARIANTS
from fedfuse.evaluation.interference import ONE_SIDED, LossChange, measure_interference

Row = Mapping[str, Any]
ALL = "all"
MEASURES = (
    *("server_loss", "server_loss_std", "interference_rate", "interference_rate_interval"),
    *("interference_depth", "interference_depth_interval", "share_of_gap_mince_to_oracle"),
    *("share_of_gap_mince_to_oracle_std", "right", "importance_cv2"),
)


def summarize(cells: Sequence[Row], choices: Sequence[Row]) -> dict[str, Any]:
    """Per scenario and variant: loss, interference, share of the way to the oracle, importance.

    - ``server_loss``: mean over seeds and domains, nats per byte; ``_std`` over seeds.
    - ``interference_rate``, ``interference_depth``: of ``measure_interference``, with intervals;
      ``all``: over all scenarios, for variants that were tried on all.
    - ``training_noise``: standard deviation of a domain's loss over orders of batches, nats per
      byte, from the oracle's two.
    - ``share_of_gap_mince_to_oracle``: how much of the difference of mean losses between MinCE and
      the oracle a variant removes; ``_std`` over seeds. None where there is no difference.
    - ``right``: mean weight on whoever knows best, over all rounds.
    - ``ablations``: ``change`` is the loss over that of ``trained`` on the same seed, less 1.
    - ``default_rule``: of the rule that is the default, by scenario: how much more its loss is than
      that of the best variant without an oracle, mean and deviation over seeds; and whether that is
      within noise, the larger of this deviation and that of training. ``blind``: the same among
      the rules that have blind evidence.
    - ``importance_cv2``: squared coefficient of variation of the candidates' shares in the last
      round, the server's left out: 0 where all are used alike, K - 1 where one is.
    """
    sigma = training_noise(cells)
    found: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in MEASURES}

    def put(scenario: str, variant: str, measures: Mapping[str, float | None]) -> None:
        for name, value in measures.items():
            found[name].setdefault(scenario, {})[variant] = value

    tried = harness.grouped(cells, "scenario", "variant")
    chosen = harness.grouped(choices, "scenario", "variant")
    losses: dict[str, dict[str, dict[int, float]]] = {}  # scenario -> variant -> seed -> mean
    for (scenario, variant), mine in tried.items():
        of_seed = losses.setdefault(scenario, {})[variant] = loss_by_seed(mine)
        put(scenario, variant, harness.mean_and_std("server_loss", list(of_seed.values())))
        put(scenario, variant, harm(mine, sigma))
        put(scenario, variant, trust(chosen.get((scenario, variant), [])))
    ablations = {}
    for scenario, of_variant in losses.items():
        if {"min-ce", "oracle"} <= of_variant.keys():
            for variant in of_variant:
                put(scenario, variant, gap(of_variant, variant))
        if scenario in ABLATED and "trained" in of_variant and ABLATIONS.keys() & of_variant.keys():
            trusted = {
                variant: trust(chosen.get((scenario, variant), [])) for variant in of_variant
            }
            ablations[scenario] = ablated(of_variant, trusted)
    for variant, mine in harness.grouped(cells, "variant").items():
        if all((scenario, variant) in tried for scenario in losses):
            put(ALL, variant, harm(mine, sigma))
    default_rule = {
        scenario: behind(of_variant, sigma)
        for scenario, of_variant in losses.items()
        if DEFAULT_RULE in of_variant
    }
    return {
        "training_noise": round(sigma, 5),
        **found,
        "default_rule": default_rule,
        "ablations": ablations,
    }


def behind(losses: Mapping[str, Mapping[int, float]], sigma: float) -> dict[str, Any]:
    """What the default rule lacks to the best of all rules in a scenario, seed by seed."""
    rules = {name: losses[name] for name in MAIN if name in losses and name != "oracle"}
    blind = {name: of_seed for name, of_seed in rules.items() if VARIANTS[name].blind}
    return {
        "rule": DEFAULT_RULE,
        **_behind_best(rules, sigma),
        "blind": _behind_best(blind, sigma),
    }


def _behind_best(rules: Mapping[str, Mapping[int, float]], sigma: float) -> dict[str, Any]:
    best = min(rules, key=lambda name: mean(rules[name].values()))
    more = [rules[DEFAULT_RULE][seed] - loss for seed, loss in rules[best].items()]
    noise = max(harness.spread(more), sigma)
    return {
        "best": best,
        **harness.mean_and_std("behind", more, 5),
        "within_noise": mean(more) <= noise,
    }


def ablated(
    losses: Mapping[str, Mapping[int, float]], trusted: Mapping[str, Row]
) -> dict[str, dict[str, Any]]:
    """Variants with one thing changed beside what they are compared with, on the same seeds."""
    found = {}
    for variant in ("trained", *ABLATIONS, "min-ce", "oracle"):
        if both := sorted(losses.get("trained", {}).keys() & losses.get(variant, {}).keys()):
            of_seed = losses[variant]
            changes = [of_seed[seed] / losses["trained"][seed] - 1 for seed in both]
            found[variant] = {
                "loss": round(mean(of_seed.values()), 5),
                "seeds": len(of_seed),
                **harness.mean_and_std("change", changes, 5),
                **{"right": None, "importance_cv2": None, **trusted[variant]},
            }
    return found


def loss_by_seed(cells: Sequence[Row]) -> dict[int, float]:
    """Mean loss over domains, by seed."""
    seeds = sorted(harness.grouped(cells, "seed").items())
    return {seed: mean(c["after"] for c in mine) for seed, mine in seeds}


def training_noise(cells: Sequence[Row]) -> float:
    """Standard deviation of a domain's loss over orders of batches; 0 where one was tried."""
    losses = {(c["variant"], c["scenario"], c["seed"], c["domain"]): c["after"] for c in cells}
    pairs = [
        (loss, losses[f"{variant}-again", *where])
        for (variant, *where), loss in losses.items()
        if (f"{variant}-again", *where) in losses
    ]
    return sqrt(mean((a - b) ** 2 / 2 for a, b in pairs)) if pairs else 0.0


def noise_of(cell: Row, sigma: float) -> float:
    """How much of a rise is noise: of the test samples drawn and of the training's order.

    One-sided, 95 % each; ``sigma`` as ``training_noise`` gives it.
    """
    return hypot(cell["noise"], ONE_SIDED * sigma)


def harm(cells: Iterable[Row], sigma: float) -> dict[str, Any]:
    """Interference of some cells."""
    changes = [
        LossChange(
            c["seed"], c["scenario"], c["domain"], c["before"], c["after"], noise_of(c, sigma)
        )
        for c in cells
    ]
    found = measure_interference(changes)
    return {
        "interference_rate": round(found.rate, 4),
        "interference_rate_interval": [round(end, 4) for end in found.rate_interval],
        "interference_depth": round(found.depth, 4),
        "interference_depth_interval": [round(end, 4) for end in found.depth_interval],
    }


def trust(choices: Sequence[Row]) -> dict[str, float]:
    """Who was trusted over some rounds; nothing where nobody could be."""
    if not choices:
        return {}
    last = max(c["round"] for c in choices)
    uneven = mean(unevenness(c["shares"]) for c in choices if c["round"] == last)
    return {"right": harness.mean_of(choices, "right"), "importance_cv2": round(uneven, 4)}


def gap(losses: Mapping[str, Mapping[int, float]], variant: str) -> dict[str, float | None]:
    """Share of the way from MinCE to the oracle, over the seeds that a variant was tried on."""
    three = [[losses[v][seed] for seed in losses[variant]] for v in ("min-ce", "oracle", variant)]
    whole = way(*map(mean, three))
    known = [share for s in zip(*three, strict=True) if (share := way(*s)) is not None]
    name = "share_of_gap_mince_to_oracle"
    return {
        name: None if whole is None else round(whole, 4),
        f"{name}_std": round(harness.spread(known), 4),
    }


def way(start: float, end: float, loss: float) -> float | None:
    """How much of the way from ``start`` to ``end`` a loss is; None where there is none to go."""
    return (start - loss) / (start - end) if abs(start - end) > 1e-6 else None


def unevenness(shares: Mapping[str, Sequence[float]]) -> float:
    """Squared coefficient of variation of the candidates' mean shares, the server left out."""
    importance = np.mean(list(shares.values()), axis=0)[1:]
    total = importance.mean()
    return float(importance.var() / total**2) if total > 0 else 0.0

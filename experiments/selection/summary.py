"""What the selection experiment's cells come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import hypot, sqrt
from statistics import mean
from typing import Any

import numpy as np

from experiments import harness
from experiments.selection.variants import ABLATED, ABLATIONS
from fedfuse.evaluation.interference import ONE_SIDED, LossChange, measure_interference

Row = Mapping[str, Any]
ALL = "all"


def summarize(cells: Sequence[Row], choices: Sequence[Row]) -> dict[str, Any]:
    """Per scenario and variant: loss, interference, share of the way to the oracle, importance.

    - ``server_loss``: mean over seeds and domains, nats per byte; ``server_loss_std``: standard
      deviation over seeds.
    - ``interference_rate``, ``interference_depth``: of ``measure_interference``, with intervals;
      under ``all`` over the cells of all scenarios, for variants that were tried on all. A rise is
      beyond noise by ``noise_of``.
    - ``training_noise``: standard deviation of a domain's loss from one order of batches to
      another, nats per byte, from the oracle's two where both were tried.
    - ``share_of_gap_mince_to_oracle``: how much of the difference of mean losses between MinCE and
      the oracle a variant removes, on the seeds that it was tried on; ``_std`` over seeds. None
      where there is no difference.
    - ``right``: mean weight on whoever knows best, over all rounds.
    - ``ablations``: by scenario and variant; ``change`` is the loss over that of ``trained`` on the
      same seed, less 1, with its mean and standard deviation over seeds.
    - ``importance_cv2``: squared coefficient of variation of the candidates' shares in the last
      round, the server's left out: 0 where all are used alike, K - 1 where one is.
    """
    sigma = training_noise(cells)
    summary: dict[str, Any] = {
        "server_loss": {},
        "server_loss_std": {},
        "training_noise": round(sigma, 5),
        "interference_rate": {},
        "interference_rate_interval": {},
        "interference_depth": {},
        "interference_depth_interval": {},
        "share_of_gap_mince_to_oracle": {},
        "share_of_gap_mince_to_oracle_std": {},
        "right": {},
        "importance_cv2": {},
    }

    def note(name: str, scenario: str, variant: str, value: float | list[float] | None) -> None:
        if isinstance(value, list):
            value = [round(end, 4) for end in value]
        elif value is not None:
            value = round(value, 4)
        summary[name].setdefault(scenario, {})[variant] = value

    scenarios = list(dict.fromkeys(cell["scenario"] for cell in cells))
    variants = list(dict.fromkeys(cell["variant"] for cell in cells))
    for scenario in scenarios:
        losses: dict[str, dict[int, float]] = {}  # variant -> seed -> mean over domains
        for variant in variants:
            mine = [c for c in cells if (c["scenario"], c["variant"]) == (scenario, variant)]
            if not mine:
                continue
            losses[variant] = loss_by_seed(mine)
            note("server_loss", scenario, variant, mean(losses[variant].values()))
            note(
                "server_loss_std", scenario, variant, harness.spread(list(losses[variant].values()))
            )
            harm(note, scenario, variant, mine, sigma)
            chosen = [c for c in choices if (c["scenario"], c["variant"]) == (scenario, variant)]
            if chosen:
                note("right", scenario, variant, mean(c["right"] for c in chosen))
                last = max(c["round"] for c in chosen)
                uneven = [unevenness(c["shares"]) for c in chosen if c["round"] == last]
                note("importance_cv2", scenario, variant, mean(uneven))
        if not {"min-ce", "oracle"} <= losses.keys():
            continue
        for variant, found in losses.items():
            # Over the seeds that a variant was tried on.
            ends = [[losses[name][seed] for seed in found] for name in ("min-ce", "oracle")]
            shares = [way(*three) for three in zip(*ends, found.values(), strict=True)]
            whole = way(*map(mean, ends), mean(found.values()))
            note("share_of_gap_mince_to_oracle", scenario, variant, whole)
            known = [share for share in shares if share is not None]
            note("share_of_gap_mince_to_oracle_std", scenario, variant, harness.spread(known))
    summary["ablations"] = ablated(cells, choices)
    tried = {(c["scenario"], c["variant"]) for c in cells}
    everywhere = [v for v in variants if all((s, v) in tried for s in scenarios)]
    for variant in everywhere:
        harm(note, ALL, variant, [c for c in cells if c["variant"] == variant], sigma)
    return summary


def ablated(cells: Sequence[Row], choices: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Variants with one thing changed beside what they are compared with, on the same seeds."""
    found: dict[str, dict[str, Any]] = {}
    for scenario in ABLATED:
        losses: dict[str, dict[int, float]] = {}  # variant -> seed -> mean over domains
        for variant in ("trained", *ABLATIONS, "min-ce", "oracle"):
            mine = [c for c in cells if (c["scenario"], c["variant"]) == (scenario, variant)]
            losses[variant] = loss_by_seed(mine)
        for variant, of_seed in losses.items():
            both = losses["trained"].keys() & of_seed.keys()
            if not both or not any(losses[name] for name in ABLATIONS):
                continue
            changes = [of_seed[seed] / losses["trained"][seed] - 1 for seed in sorted(both)]
            chosen = [c for c in choices if (c["scenario"], c["variant"]) == (scenario, variant)]
            last = max((c["round"] for c in chosen), default=0)
            uneven = [unevenness(c["shares"]) for c in chosen if c["round"] == last]
            found.setdefault(scenario, {})[variant] = {
                "loss": round(mean(of_seed.values()), 5),
                "seeds": len(of_seed),
                "change": round(mean(changes), 5),
                "change_std": round(harness.spread(changes), 5),
                "right": round(mean(c["right"] for c in chosen), 4) if chosen else None,
                "importance_cv2": round(mean(uneven), 4) if uneven else None,
            }
    return found


def loss_by_seed(cells: Sequence[Row]) -> dict[int, float]:
    """Mean loss over domains, by seed."""
    seeds = sorted({c["seed"] for c in cells})
    return {seed: mean(c["after"] for c in cells if c["seed"] == seed) for seed in seeds}


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


def harm(note: Any, scenario: str, variant: str, cells: Sequence[Row], sigma: float) -> None:
    """Interference of some cells."""
    where = ("seed", "scenario", "domain", "before", "after")
    found = measure_interference(
        [LossChange(*(c[key] for key in where), noise=noise_of(c, sigma)) for c in cells]
    )
    note("interference_rate", scenario, variant, found.rate)
    note("interference_rate_interval", scenario, variant, list(found.rate_interval))
    note("interference_depth", scenario, variant, found.depth)
    note("interference_depth_interval", scenario, variant, list(found.depth_interval))


def way(start: float, end: float, loss: float) -> float | None:
    """How much of the way from ``start`` to ``end`` a loss is; None where there is none to go."""
    return (start - loss) / (start - end) if abs(start - end) > 1e-6 else None


def unevenness(shares: Mapping[str, Sequence[float]]) -> float:
    """Squared coefficient of variation of the candidates' mean shares, the server left out."""
    importance = np.mean(list(shares.values()), axis=0)[1:]
    total = importance.mean()
    return float(importance.var() / total**2) if total > 0 else 0.0

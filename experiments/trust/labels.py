"""What a client gains that tells the public labels: ``python -m experiments.trust.labels``.

Four honest clients with a domain each, and a fifth that has no model. Rules see evidence of the
labels that everybody knows, or of blind questions. As in the selection study no federation runs:
clients are trained once a seed, and every rule has the same teachers and the same budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from statistics import mean
from typing import Any

import numpy as np
import torch

from experiments import harness
from experiments.selection.material import Material, prepare
from experiments.selection.scenarios import SCENARIOS
from experiments.selection.trial import Trial
from experiments.selection.variants import named
from experiments.trust.lies import LIES, guess, one_word_knowledge
from fedfuse.algorithms.fedmkt import KnowledgeSet
from fedfuse.builtin.models import cache_root

ABSENT, ONE_WORD = "absent", "one-word"
LIARS = (ABSENT, *LIES, ONE_WORD)
# The server's rule of each strategy.
STRATEGIES = {
    "fedmkt": named("dual-min-ce"),
    "fusion-x": named("learned-gate"),
    "fedfuse": named("nearest-neighbours"),
}
EVIDENCE = ("blind", "open")


def with_liar(material: Material, liar: str, seed: int) -> Material:
    """The material with one more client, which no oracle would take."""
    if liar == ABSENT:
        return material
    honest, rng = material.candidates[0], np.random.default_rng([seed, 5])
    options = guess(material.blind.asked, rng)
    if liar == ONE_WORD:
        config = material.config
        sent = one_word_knowledge(material.public, config.data.max_length, config.knowledge.k)
        sent = replace(sent, options=options)
    else:
        trial = prepared(seed)
        label = trial.aligner.pair(honest.tokenizer).rows.token
        known = LIES[liar](honest.knowledge, label, rng)
        context = np.min([c.context_loss for c in material.candidates], axis=0)  # the best anywhere
        sent = KnowledgeSet(known, honest.tokenizer, context, options)
    return replace(
        material,
        scenario=replace(material.scenario, steps=(*material.scenario.steps, 0)),
        candidates=[*material.candidates, sent],
        held_out={d: np.append(loss, np.inf) for d, loss in material.held_out.items()},
    )


@lru_cache(maxsize=1)
def prepared(seed: int) -> Trial:
    """Teachers and server of a seed, the same for all cells."""
    torch.set_num_threads(1)
    return Trial(prepare(seed, SCENARIOS["default"], cache_root() / "selection"))


def measure(seed: int, strategy: str, evidence: str, liar: str) -> list[dict[str, Any]]:
    """Excess of the server (nats per byte above the floor), and the liar's largest weight."""
    trial = prepared(seed)
    honest = trial.material
    trial.material = with_liar(honest, liar, seed)
    try:
        outcome = trial.run(replace(STRATEGIES[strategy], blind=evidence == "blind"))
    finally:
        trial.material = honest
    floor = honest.splits.floor
    assert floor is not None  # the built-in world's is known
    excess = mean(
        float(outcome.nats[trial.domains == domain].mean()) - floor.loss[domain]
        for domain in honest.splits.domains
    )
    about = {"seed": seed, "strategy": strategy, "evidence": evidence, "liar": liar}
    found: dict[str, float] = {"excess": round(excess, 5)}
    if liar != ABSENT:
        shares = [of[-1] for choice in outcome.choices for of in choice["shares"].values()]
        found["largest_weight"] = round(max(shares), 4)
    return [about | found]


def summarize(rows: Sequence[harness.Row]) -> dict[str, Any]:
    """By evidence, strategy and liar: excess over that without the liar, and weight.

    - ``excess_over_absent``: the excess with the liar over that of the same seed without, less 1;
      ``_std`` over seeds.
    - ``largest_weight``: mean over seeds of the liar's largest share of a domain in a round.
    - ``excess_without_liars``: mean excess, nats per byte.
    """
    by = harness.grouped(rows, "evidence", "strategy", "liar")
    found: dict[str, Any] = {
        "excess_without_liars": {},
        "excess_over_absent": {},
        "excess_over_absent_std": {},
        "largest_weight": {},
    }
    for (evidence, strategy, liar), mine in by.items():
        if liar == ABSENT:
            without = found["excess_without_liars"].setdefault(evidence, {})
            without[strategy] = harness.mean_of(mine, "excess")
            continue
        absent = {row["seed"]: row["excess"] for row in by[evidence, strategy, ABSENT]}
        more = harness.mean_and_std("x", [r["excess"] / absent[r["seed"]] - 1 for r in mine])
        for name, value in (
            ("excess_over_absent", more["x"]),
            ("excess_over_absent_std", more["x_std"]),
            ("largest_weight", harness.mean_of(mine, "largest_weight")),
        ):
            found[name].setdefault(evidence, {}).setdefault(strategy, {})[liar] = value
    return found


def table(summary: dict[str, Any]) -> str:
    """Excess over that without the liar, by liar, and by strategy and evidence."""
    both = [(strategy, evidence) for evidence in EVIDENCE for strategy in STRATEGIES]
    over, std = summary["excess_over_absent"], summary["excess_over_absent_std"]
    weight = summary["largest_weight"]

    def cell(liar: str, strategy: str, evidence: str) -> str:
        mine = (part[evidence][strategy][liar] for part in (over, std, weight))
        return "{:+.0%} \N{PLUS-MINUS SIGN} {:.0%}, {:.0%}".format(*mine)

    without = summary["excess_without_liars"]
    return harness.markdown(
        ["liar", *(f"{strategy}, {evidence}" for strategy, evidence in both)],
        [
            ["none", *(f"{without[evidence][strategy]:.4f}" for strategy, evidence in both)],
            *([liar, *(cell(liar, *each) for each in both)] for liar in LIARS if liar != ABSENT),
        ],
    )


@harness.experiment("labels.json", "selection.md", {"trust-labels": table})
def main(seeds: harness.Seeds = "0,1,2,3,4", parallel: harness.Parallel = 1) -> harness.Study:
    """Try every strategy, evidence and liar; write labels.json beside this file, and the table."""
    return harness.Study(
        cells={
            (seed, strategy, evidence, liar): partial(measure, seed, strategy, evidence, liar)
            for seed in harness.numbers(seeds)
            for strategy in STRATEGIES
            for evidence in EVIDENCE
            for liar in LIARS
        },
        folder="trust-labels",
        summarize=summarize,
        parallel=parallel,
        shared=1,
    )

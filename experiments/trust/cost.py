"""What blind evidence costs where nobody lies: ``python -m experiments.trust.cost``.

The quickstart twice: judged by blind questions, and by the labels of the public set. The latter has
the blind samples in its public set, so that both sides have the same labelled samples, and a server
that begins at its base.
"""

from __future__ import annotations

from statistics import mean
from typing import Any

from experiments import harness
from experiments.federations import Federations, RunKey, traffic
from experiments.quickstart.run import NO_BASELINES
from experiments.quickstart.strategies import excesses
from fedfuse.config.data import DataConfig
from fedfuse.tracking.run import RunFolder

PUBLIC, BLIND = DataConfig().public, DataConfig().blind
EVIDENCE = {
    "blind": ("fusion.evidence=blind", f"data.public={PUBLIC}", f"data.blind={BLIND}"),
    # A server that has learned the labels seems to know them better than anybody.
    "open": (
        "fusion.evidence=open",
        "labels-first=false",
        f"data.public={PUBLIC + BLIND}",
        "data.blind=0",
    ),
}
COLUMNS = {
    "": "{what}",
    "open": "{open}",
    "blind": "{blind}",
    "blind over open": "{more:+.1%} \N{PLUS-MINUS SIGN} {std:.1%}",
}
FORMS = {"server": "{:.4f}", "clients": "{:.4f}", "own": "{:.4f}", "bytes": "{:,.0f}"}
TITLES = {
    "server": "server, excess",
    "clients": "clients on all domains, excess",
    "own": "clients on their own domain, excess",
    "bytes": "bytes of all messages",
    "seconds": "seconds, clients at once",
}


def costs(run: RunFolder) -> dict[str, float]:
    """Final excess, nats per byte, bytes of all messages, and seconds from first to last message.

    Clients work at once, so a phase takes as long as the last of them. The server learns labels
    meanwhile, and takes their replies after that.
    """
    phases: dict[tuple[int, str], float] = {}
    for line in run.messages:
        key = (line.round, line.phase)
        phases[key] = max(phases.get(key, 0.0), line.seconds)
    seconds = sum(spent for (_, phase), spent in phases.items() if phase != "server.labels")
    return excesses(run) | {"bytes": traffic(run), "seconds": seconds}


def summarize(runs: dict[RunKey, RunFolder]) -> dict[str, Any]:
    """By measure: mean by evidence; and ``more``: blind over open of the same seed, less 1."""
    found = {key: costs(run) for key, run in runs.items()}
    seeds = list(dict.fromkeys(seed for _, seed in runs))
    summary: dict[str, Any] = {}
    for name in TITLES:
        by = {e: [found[e, seed][name] for seed in seeds] for e in EVIDENCE}
        ratios = [b / o - 1 for b, o in zip(by["blind"], by["open"], strict=True)]
        summary[name] = {
            **({e: round(mean(values), 4) for e, values in by.items()}),
            "more": round(mean(ratios), 4),
            "std": round(harness.spread(ratios), 4),
        }
    del summary["seconds"]["blind"], summary["seconds"]["open"]  # a ratio says what it costs
    return summary


def table(summary: dict[str, Any]) -> str:
    """A row for each measure."""
    rows = []
    for name, title in TITLES.items():
        of = summary[name]
        shown = {e: FORMS[name].format(of[e]) if e in of else "" for e in EVIDENCE}
        rows.append({"what": title, **shown, "more": of["more"], "std": of["std"]})
    return harness.formatted(COLUMNS, rows)


@harness.experiment("cost.json", "selection.md", {"trust-cost": table})
def main(seeds: harness.Seeds = "0,1,2,3,4", parallel: harness.Parallel = 2) -> Federations:
    """Run every seed both ways; write cost.json beside this file, and the table."""
    return Federations(
        cells={
            (evidence, seed): (*NO_BASELINES, *(x for key in keys for x in ("--set", key)))
            for seed in harness.numbers(seeds)
            for evidence, keys in EVIDENCE.items()
        },
        folder="trust-cost",
        summarize=summarize,
        parallel=parallel,
    )

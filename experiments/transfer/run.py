"""What is lost between tokenizers, and by which rule: ``python -m experiments.transfer.run``.

The same teacher, student, public samples and steps for every rule, and no label loss beside the
teacher's. Each rule has the learning rate that serves it best on a seed that is not reported.
"""

from __future__ import annotations

from typing import Any

from experiments import harness
from experiments.transfer.trial import METHODS, run_trial
from experiments.transfer.tuned import Tuned
from experiments.transfer.world import PAIRS

RATES = (3e-3, 6e-3, 1.2e-2, 2.4e-2)
MEASURES = ("total_variation", "never_used", "taught")
TITLES = {
    "coarse_fine": "coarse -> fine",
    "one_to_one": "1:1",
    "fine_coarse": "fine -> coarse",
    "finest_coarse": "finest -> coarse",
}
COLUMNS = {
    "taught by": "{method}",
    **{title: f"{{{pair}}}" for pair, title in TITLES.items()},
}


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """By pair: share of the zero-shot excess that each rule closes, and of what exact closes.

    ``share_of_exact_16``: the same with the entries that clients send by default.
    """
    by = harness.grouped(rows, "pair", "method")
    closed = {pair: {m: _closed(by[pair, m]) for m in METHODS} for pair in PAIRS}
    share, share_16 = (
        {p: round(c[rule]["mean"] / c["exact"]["mean"], 4) for p, c in closed.items()}
        for rule in ("events", "events-16")
    )
    measures = {
        name: {
            pair: {m: harness.mean_of(by[pair, m], name) for m in METHODS if name in by[pair, m][0]}
            for pair in PAIRS
        }
        for name in MEASURES
    }
    variation = {pair: found["events"] for pair, found in measures["total_variation"].items()}
    return {
        "share_of_exact": share,
        "share_of_exact_16": share_16,
        "closed": closed,
        "total_variation": variation,
        "measures": measures,
    }


def _closed(rows: list[dict[str, Any]]) -> dict[str, float]:
    shares = [1 - row["after"] / row["before"] for row in rows]
    return {"mean": round(sum(shares) / len(shares), 4), "std": round(harness.spread(shares), 4)}


def table(summary: dict[str, Any]) -> str:
    """Share of the excess closed by rule and pair; then how near events are to exact."""
    rows = [
        {"method": method}
        | {
            pair: "{mean:.0%} \N{PLUS-MINUS SIGN} {std:.0%}".format_map(found[method])
            for pair, found in summary["closed"].items()
        }
        for method in METHODS
    ]
    near = {
        "events, of what exact closes": ("{:.0%}", summary["share_of_exact"]),
        "events-16, of what exact closes": ("{:.0%}", summary["share_of_exact_16"]),
        "events, median total variation to exact": ("{:.4f}", summary["total_variation"]),
    }
    rows += [
        {"method": name} | {pair: form.format(value) for pair, value in by_pair.items()}
        for name, (form, by_pair) in near.items()
    ]
    return harness.formatted(COLUMNS, rows)


@harness.experiment("results.json", "alignment.md", {"transfer": table})
def main(
    seeds: harness.Seeds = "0,1,2,3,4",
    tuning_seeds: harness.Seeds = "100",
    parallel: harness.Parallel = 1,
) -> Tuned:
    """Teach every student by every rule; write results.json beside this file, and the table."""
    return Tuned(
        trial=run_trial,
        pairs=tuple(PAIRS),
        methods=METHODS,
        rates=RATES,
        tuning_seeds=harness.numbers(tuning_seeds),
        seeds=harness.numbers(seeds),
        folder="transfer",
        summarize=summarize,
        parallel=parallel,
    )

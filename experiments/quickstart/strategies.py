"""The quickstart under several strategies: ``python -m experiments.quickstart.strategies``.

The same clients, data, steps and seeds; what differs is who is trusted.
"""

from __future__ import annotations

from statistics import mean

from experiments import harness
from experiments.federations import Federations
from experiments.quickstart.run import NO_BASELINES
from fedfuse.evaluation.interference import measure_interference
from fedfuse.report.regressions import cells
from fedfuse.tracking.run import SERVER, RunFolder

STRATEGIES = ("fedmkt", "fusion-x", "fedfuse")


def summarize(runs: list[RunFolder]) -> dict[str, float]:
    """Final losses, nats per byte above the floor, mean and standard deviation over seeds.

    ``server``; ``clients``, mean over clients and domains; ``own``, each client on its own domain.
    Interference is over all models, domains and seeds, against the untouched models.
    """
    found: dict[str, float] = {}
    per_seed = [excesses(run) for run in runs]
    for key in per_seed[0]:
        found |= harness.mean_and_std(f"{key}_excess", [one[key] for one in per_seed])
    harm = measure_interference([cell for run in runs for cell in cells(run)])
    found["interference_rate"] = round(harm.rate, 4)
    found["interference_depth"] = round(harm.depth, 4)
    return found


def excesses(run: RunFolder) -> dict[str, float]:
    """Of the server, of the clients on all domains, and of the clients on their own."""
    of_model = {
        model: {domain: m.excess or 0.0 for domain, m in run.by_domain(model, "federated").items()}
        for model in run.measured
    }
    return {
        "server": mean(of_model[SERVER].values()),
        "clients": mean(mean(of_model[client].values()) for client in run.clients),
        "own": mean(of_model[client][run.own_domain[client]] for client in run.clients),
    }


@harness.experiment("strategies.json")
def main(seeds: harness.Seeds = "0,1,2", parallel: harness.Parallel = 2) -> Federations:
    """Run every strategy on every seed and write strategies.json beside this file."""
    return Federations(
        cells={
            (name, seed): (*NO_BASELINES, "--set", f"strategy={name}")
            for seed in harness.numbers(seeds)
            for name in STRATEGIES
        },
        folder="strategies",
        summarize=lambda runs: {
            name: summarize([run for (variant, _), run in runs.items() if variant == name])
            for name in STRATEGIES
        },
        parallel=parallel,
    )

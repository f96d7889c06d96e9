"""The quickstart's steps, rates and samples: ``python -m experiments.quickstart.settings``.

They are chosen on a seed that no result uses. A candidate changes some keys of the default; beside
what it gives stands what it costs.
"""

from __future__ import annotations

from statistics import mean

from experiments import harness
from experiments.federations import Federations, RunKey
from experiments.quickstart.run import compare, excess, measure
from fedfuse.tracking.run import SERVER, RunFolder

CANDIDATES: dict[str, dict[str, float]] = {
    "default": {},
    "three rounds of shorter phases": {
        "rounds": 3,
        "local.steps": 93,
        "server-distill.steps": 187,
        "client-distill.steps": 160,
    },
    "fewer local steps": {"local.steps": 100},
    "half the client steps": {"client-distill.steps": 120},
    "lower server rate": {"server-distill.learning-rate": 5e-3},
    "fewer public samples": {"data.public": 100},
}
PHASES = ("local", "server-distill", "client-distill")
COLUMNS = {
    "changed": "{candidate}",
    "server": "{server:.0%}",
    "server, public-only": "{server_public_only:.0%}",
    "clients": "{clients:.0%}",
    "clients, public-only": "{clients_public_only:.0%}",
    "own domain against standalone": "{own_domain:+.0%}",
    "steps": "{steps:.0f}",
}


def summarize(runs: dict[RunKey, RunFolder]) -> dict[str, dict[str, float]]:
    """By candidate, means over seeds of ``figures``."""
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(name for name, _ in runs):
        rows = [figures(run) for (of, _), run in runs.items() if of == name]
        found[name] = {key: harness.mean_of(rows, key) for key in rows[0]}
    return found


def figures(run: RunFolder) -> dict[str, float]:
    """Shares of a run's zero-shot excess that are removed, and what it took.

    Clients: the mean over them. ``own_domain``: see ``compare``, the worst client's. ``steps``:
    optimizer steps of the server and of all clients, baselines left out.
    """
    rounds, clients = run.rounds, run.clients
    local, server, client = (run.config[f"{phase}.steps"] for phase in PHASES)
    return {
        "server": _removed(run, SERVER, "federated"),
        "server_public_only": _removed(run, SERVER, "public-only"),
        "clients": mean(_removed(run, client, "federated") for client in clients),
        "clients_public_only": mean(_removed(run, client, "public-only") for client in clients),
        "own_domain": compare(run, run)["clients_max_own_domain_excess_increase"],
        "steps": rounds * (server + len(clients) * (local + client)),
    }


def _removed(run: RunFolder, model: str, stage: str) -> float:
    return 1 - excess(measure(run, model, stage)) / excess(measure(run, model, "zero-shot"))


def table(summary: dict[str, dict[str, float]]) -> str:
    """A row for each candidate."""
    rows = [{"candidate": name} | found for name, found in summary.items()]
    return harness.formatted(COLUMNS, rows)


@harness.experiment("settings.json", "results.md", {"quickstart-settings": table})
def main(seeds: harness.Seeds = "100", parallel: harness.Parallel = 2) -> Federations:
    """Run every candidate on every seed and write settings.json beside this file."""
    return Federations(
        cells={
            (name, seed): [x for key, value in keys.items() for x in ("--set", f"{key}={value}")]
            for name, keys in CANDIDATES.items()
            for seed in harness.numbers(seeds)
        },
        folder="settings",
        summarize=summarize,
        parallel=parallel,
    )

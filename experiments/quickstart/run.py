"""The main job over several seeds, with its controls: ``python -m experiments.quickstart.run``.

Variants: the default run; distillation off (labels alone, everything else the same); knowledge
shuffled between samples. Standalone, public-only and centralized training are measured inside the
default runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean

from experiments import harness
from experiments.federations import Federations, RunKey
from fedfuse.tracking.run import SERVER, Measure, RunFolder

NO_BASELINES = ("--set", "baselines=false")
CENTRALIZED = ("--set", "centralized=true")
CONTROLS = {
    "distillation-off": (
        *NO_BASELINES,
        *("--set", "server-distill.label-weight=1"),
        *("--set", "client-distill.label-weight=1"),
    ),
    "knowledge-shuffled": (
        *NO_BASELINES,
        *("--set", "strategy=experiments.quickstart.controls:ShuffledKnowledge"),
    ),
}


def summarize(runs: dict[RunKey, RunFolder], seeds: list[int]) -> dict[str, float]:
    """Mean and standard deviation over seeds; the controls on the first seed alone."""
    per_seed = [headline(runs["default", seed]) for seed in seeds]
    summary: dict[str, float] = {}
    for key in per_seed[0]:
        both = harness.mean_and_std(key, [n[key] for n in per_seed])
        summary |= both if len(seeds) > 1 else {key: both[key]}
    for name in CONTROLS:
        control = compare(runs[name, seeds[0]], runs["default", seeds[0]])
        suffix = name.replace("-", "_")
        summary |= {f"{key}_{suffix}": round(value, 4) for key, value in control.items()}
    return summary


def headline(run: RunFolder) -> dict[str, float]:
    """The default run's fractions.

    Excess is loss minus the entropy floor, both nats per byte and means over domains.
    ``public_only_share_of_fall``: of the federation's gain, what public labels alone give.
    """
    zero, federated, public = (
        measure(run, SERVER, stage) for stage in ("zero-shot", "federated", "public-only")
    )
    return compare(run, run) | {
        "public_only_share_of_fall": (zero.loss - public.loss) / (zero.loss - federated.loss),
        "server_accuracy_zero_shot": zero.accuracy or 0.0,
        "server_accuracy_federated": federated.accuracy or 0.0,
    }


def compare(run: RunFolder, baseline: RunFolder) -> dict[str, float]:
    """Server against zero-shot, clients against the baseline run's clients without a federation.

    ``clients_excess_reduction_public_only``: of the excess that public labels beside private data
    leave to a client, what is gone; the mean over clients, and the worst. What does not name a
    baseline is against standalone.
    """
    zero, federated = (measure(run, SERVER, stage) for stage in ("zero-shot", "federated"))
    reductions, beyond_labels, increases, gains = [], [], [], []
    for client in run.clients:
        alone = measure(baseline, client, "standalone")
        now = measure(run, client, "federated")
        reductions.append(1 - excess(now) / excess(alone))
        labels = measure(baseline, client, "public-only")
        beyond_labels.append(1 - excess(now) / excess(labels))
        gains.append((now.accuracy or 0.0) - (alone.accuracy or 0.0))
        own = run.own_domain[client]
        own_alone = baseline.by_domain(client, "standalone")[own]
        own_now = run.by_domain(client, "federated")[own]
        increases.append((own_now.loss - own_alone.loss) / excess(own_alone))
    return {
        "server_excess_reduction": 1 - excess(federated) / excess(zero),
        "clients_min_alldomain_excess_reduction": min(reductions),
        "clients_excess_reduction_public_only": mean(beyond_labels),
        "clients_min_excess_reduction_public_only": min(beyond_labels),
        "clients_max_own_domain_excess_increase": max(increases),
        "clients_min_accuracy_gain": min(gains),
    }


def measure(run: RunFolder, model: str, stage: str) -> Measure:
    """A model's mean over domains at the end of a stage."""
    found = run.overall(model, stage)
    if found is None:
        raise SystemExit(f"{run.folder} has no {stage} of {model}")
    return found


def excess(measured: Measure) -> float:
    """Loss over the entropy floor, which the built-in world always knows."""
    assert measured.excess is not None
    return measured.excess


# What the document shows of a summary.
ROWS = {
    "server: share of its zero-shot excess that is removed": "server_excess_reduction",
    "clients: share of the excess removed that is left with private data and public labels, mean": (
        "clients_excess_reduction_public_only"
    ),
    "the same, worst client": "clients_min_excess_reduction_public_only",
    "clients: share of the standalone all-domain excess that is removed, worst client": (
        "clients_min_alldomain_excess_reduction"
    ),
    "clients: change of the own-domain excess against standalone, worst client": (
        "clients_max_own_domain_excess_increase"
    ),
}


def table(summary: Mapping[str, float]) -> str:
    """Shares of the default runs, mean and spread over seeds, and of the controls."""
    heads = ["", "default", *(name.replace("-", " ") for name in CONTROLS)]
    rows = []
    for what, key in ROWS.items():
        std = f" ± {100 * summary[f'{key}_std']:.0f}" if f"{key}_std" in summary else ""
        controls = (summary[f"{key}_{name.replace('-', '_')}"] for name in CONTROLS)
        rows.append([what, f"{100 * summary[key]:.0f}{std} %", *(f"{c:.0%}" for c in controls)])
    return harness.markdown(heads, rows)


@harness.experiment("results.json", "results.md", {"quickstart": table})
def main(seeds: harness.Seeds = "0,1,2,3,4", parallel: harness.Parallel = 2) -> Federations:
    """Run all seeds, and the controls on the first, and write results.json beside this file."""
    drawn = harness.numbers(seeds)
    cells: dict[RunKey, tuple[str, ...]] = {("default", seed): CENTRALIZED for seed in drawn}
    cells |= {(name, drawn[0]): arguments for name, arguments in CONTROLS.items()}
    return Federations(
        cells=cells,
        folder="quickstart",
        summarize=lambda runs: summarize(runs, drawn),
        parallel=parallel,
    )

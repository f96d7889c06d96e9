"""The exchange on real text: ``python -m experiments.realtext.run --material FOLDER``.

Server: stories260K, a small pretrained Llama. Clients: stories260K and three small models around
the real tokenizers of GPT-2, Llama 2 and BERT. Data: TREC and SST-2. Results are reported as they
are: models of this size know little, and what counts is that everything works on real text and real
tokenizers.
"""

from __future__ import annotations

from pathlib import Path

from experiments import harness
from experiments.federations import Federations
from experiments.realtext.models import build_models
from fedfuse.tracking.run import RunFolder

SOURCES = ("trec", "sst2")


def summarize(runs: list[RunFolder]) -> dict[str, float]:
    """Loss (nats/byte) and accuracy per model and stage: mean and standard deviation over seeds."""
    summary: dict[str, float] = {}
    for model in runs[0].measured:
        for stage in runs[0].stages:
            found = [m for run in runs if (m := run.overall(model, stage))]
            values = {
                "loss": [m.loss for m in found],
                "accuracy": [m.accuracy for m in found if m.accuracy is not None],
            }
            for kind, measured in values.items():
                if measured:
                    summary |= harness.mean_and_std(f"{model}/{stage}/{kind}", measured)
    return summary


@harness.experiment("results.json")
def main(
    material: harness.Material,
    seeds: harness.Seeds = "0,1,2",
    output: harness.Output = harness.RUNS,
    parallel: harness.Parallel = 2,
) -> Federations:
    """Run all seeds and write results.json beside this file."""
    material, folder = material.resolve(), output.resolve() / "experiment-realtext"
    folder.mkdir(parents=True, exist_ok=True)
    sources = [str(material / "datasets" / name) for name in SOURCES]
    stories = str(material / "models" / "stories260K")
    clients = [stories, *map(str, build_models(material, sources, folder))]
    arguments = (
        *("--config", str(Path(__file__).with_name("realtext.toml"))),
        *("--set", f"data.source={'+'.join(sources)}"),
        *("--set", f"server.model={stories}"),
        *("--set", f"clients.model={','.join(clients)}"),
    )
    return Federations(
        cells={("realtext", seed): arguments for seed in harness.numbers(seeds)},
        folder="realtext",
        summarize=lambda runs: summarize(list(runs.values())),
        parallel=parallel,
    )

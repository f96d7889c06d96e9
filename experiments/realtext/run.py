"""The exchange on real text: ``python -m experiments.realtext.run --material FOLDER``.

Server: stories260K, a small pretrained Llama. Clients: stories260K and three small models around
the real tokenizers of GPT-2, Llama 2 and BERT. Data: TREC and SST-2. Results are reported as they
are: models of this size know little, and what counts is that everything works on real text and real
tokenizers.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import typer

from experiments.frame import Job, raw_cells, run_jobs, write_results
from experiments.realtext.models import build_models
from fedfuse.tracking.run import RunFolder

HERE = Path(__file__).parent
SOURCES = ("trec", "sst2")


def main(
    material: Annotated[Path, typer.Option(help="Folder with models, tokenizers and datasets.")],
    seeds: Annotated[str, typer.Option(help="Seeds, joined by commas.")] = "0,1,2",
    output: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs"),
    parallel: Annotated[int, typer.Option(help="Runs at a time.")] = 2,
) -> None:
    """Run all seeds and write results.json beside this file."""
    started = time.monotonic()
    material, output = material.resolve(), output.resolve() / "experiment-realtext"
    output.mkdir(parents=True, exist_ok=True)
    sources = [str(material / "datasets" / name) for name in SOURCES]
    stories = str(material / "models" / "stories260K")
    clients = [stories, *map(str, build_models(material, sources, output))]
    arguments = (
        *("--config", str(HERE / "realtext.toml")),
        *("--set", f"data.source={'+'.join(sources)}"),
        *("--set", f"server.model={stories}"),
        *("--set", f"clients.model={','.join(clients)}"),
    )
    numbers = [int(seed) for seed in seeds.split(",")]
    runs = run_jobs([Job("realtext", seed, arguments) for seed in numbers], output, parallel)
    write_results(
        HERE / "results.json",
        command=f"python -m experiments.realtext.run --material MATERIAL --seeds {seeds}",
        seeds=numbers,
        summary=summarize(list(runs.values())),
        cells=raw_cells(runs),
        runs=runs,
        started=started,
    )


def summarize(runs: list[RunFolder]) -> dict[str, float]:
    """Loss (nats/byte) and accuracy per model and stage: mean and standard deviation over seeds."""
    summary: dict[str, float] = {}
    for model in runs[0].measured:
        for stage in runs[0].stages:
            found = [measured for run in runs if (measured := run.overall(model, stage))]
            values = {
                "loss": [m.loss for m in found],
                "accuracy": [m.accuracy for m in found if m.accuracy is not None],
            }
            for kind, numbers in values.items():
                if numbers:
                    key = f"{model}/{stage}/{kind}"
                    summary[key] = round(mean(numbers), 4)
                    summary[f"{key}_std"] = round(stdev(numbers), 4) if len(numbers) > 1 else 0.0
    return summary


if __name__ == "__main__":
    typer.run(main)

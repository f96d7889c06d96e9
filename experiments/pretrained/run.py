"""The ``pretrained`` preset's rates, steps and label weights, on SmolLM2 and Gemma 3.

``python -m experiments.pretrained.run --material FOLDER --models FOLDER``

Phases of a federation are tried one by one: a model learns labels, then each model learns from the
other, which has learned labels. Data are the training files of two data sets alone, on seeds that
no result uses; what a phase is judged by is held out from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import geometric_mean
from typing import Annotated, Any

import typer

from experiments import harness
from fedfuse.algorithms.distill import distill
from fedfuse.config.data import DataConfig
from fedfuse.config.model import AdapterConfig
from fedfuse.config.training import TrainingConfig
from fedfuse.data.sample import Splits
from fedfuse.distillation.training import train
from fedfuse.evaluation.losses import sample_nll
from fedfuse.factory.data import load_splits
from fedfuse.factory.models import load_model
from fedfuse.models.causal_lm import CausalLM, add_lora, save_adapter
from fedfuse.tokenizers.dataset import TokenizedDataset

MODELS = {"smollm2": "smollm2-135m-instruct", "gemma3": "gemma3-270m"}
TEACHER_OF = {"smollm2": "gemma3", "gemma3": "smollm2"}
DATA = {"trec": "six kinds of question", "rotten_tomatoes": "sentiment of film reviews"}
LENGTH, PRIVATE, PUBLIC, TEST = 96, 400, 150, 100
LORA = AdapterConfig(rank=16, alpha=32.0)
LABELS = TrainingConfig(steps=60, batch_size=8, warmup_ratio=0.05)
RATES = (3e-4, 1e-3, 3e-3)
STEPS = (60, 30, 120)
DISTILLING_STEPS = 80
LABEL_WEIGHTS = (0.3, 0.1, 0.6)


@dataclass(frozen=True)
class Setting:
    """What is tried in a phase; learning from labels has no label weight."""

    phase: str  # "labels" or "distill"
    rate: float
    steps: int
    label_weight: float = 1.0

    def __str__(self) -> str:
        return f"{self.phase} {self.rate:g} {self.steps} {self.label_weight:g}"


@dataclass(frozen=True)
class Trials:
    """Where models and data are."""

    material: Path
    models: Path
    folder: Path  # of teachers' adapters

    def splits(self, data: str, seed: int) -> Splits:
        """Samples of a data set's training file: what anyone reports is of another."""
        config = DataConfig(
            source=str(self.material / "datasets" / data / "train.jsonl"),
            partition="iid",
            private=PRIVATE,
            public=PUBLIC,
            test=TEST,
            questions=0,
            holdout=0,
            blind=0,
            max_length=LENGTH,
        )
        return load_splits(config, seed, 1)

    def base(self, model: str) -> CausalLM:
        """A model as it is before the federation."""
        return load_model(str(self.models / MODELS[model]))

    def run(self, setting: Setting, model: str, data: str, seed: int) -> harness.Rows:
        """A phase of one model on one data set, its loss before and after (nats per byte)."""
        splits, lm = self.splits(data, seed), self.base(model)
        before = nats_per_byte(lm, splits)
        if setting.phase == "labels":
            lm = learn_labels(lm, splits, setting.rate, setting.steps, seed)
        else:
            rate = float(setting.phase.removeprefix("distill from "))
            lm = distill(
                lm,
                [self.teacher(TEACHER_OF[model], data, rate, seed)],
                splits.public,
                steps=setting.steps,
                batch_size=LABELS.batch_size,
                learning_rate=setting.rate,
                label_weight=setting.label_weight,
                lora=LORA,
                max_length=LENGTH,
                seed=seed,
            ).student
        about = {"seed": seed, "data": data, "model": model, "setting": str(setting)}
        return [about | {"before": before, "after": nats_per_byte(lm, splits)}]

    def teacher(self, model: str, data: str, rate: float, seed: int) -> CausalLM:
        """A model that has learned labels; made once."""
        folder = self.folder / f"{model}-{data}-{seed}-{rate:g}"
        if not folder.exists():
            splits = self.splits(data, seed)
            lm = learn_labels(self.base(model), splits, rate, LABELS.steps, seed)
            save_adapter(lm.model, folder)
        return load_model(str(folder))


def learn_labels(lm: CausalLM, splits: Splits, rate: float, steps: int, seed: int) -> CausalLM:
    """A new adapter after a phase on private labels."""
    adapted = add_lora(lm, LORA, seed=seed)
    data = TokenizedDataset(lm.tokenizer, splits.private[0], LENGTH)
    train(adapted, data, replace(LABELS, steps=steps, learning_rate=rate), seed=seed)
    return adapted


def nats_per_byte(lm: CausalLM, splits: Splits) -> float:
    """Loss of the answers that are held out."""
    data = TokenizedDataset(lm.tokenizer, splits.test, LENGTH)
    return round(float(sample_nll(lm, data).sum() / data.label_bytes.sum()), 5)


@dataclass(frozen=True)
class Choice:
    """Settings chosen one after another, each on all models, data sets and seeds."""

    trials: Trials
    seeds: Sequence[int]
    parallel: int

    def run(self, output: Path) -> dict[str, Any]:
        """Run what is not finished; returns the study's part of the result file."""
        kept: list[dict[str, Any]] = []

        def best(settings: Sequence[Setting]) -> Setting:
            rows = self._try(settings).run(output)["cells"]
            kept.extend(row for row in rows if row not in kept)
            ranked = ranking(rows)
            return min(settings, key=lambda setting: ranked[str(setting)])

        labels = best([Setting("labels", rate, LABELS.steps) for rate in RATES])
        longer = best([replace(labels, steps=steps) for steps in STEPS])
        phase = f"distill from {labels.rate:g}"
        first = [Setting(phase, r, DISTILLING_STEPS, LABEL_WEIGHTS[0]) for r in RATES]
        taught = best(first)
        weighted = best([replace(taught, label_weight=weight) for weight in LABEL_WEIGHTS])
        chosen = {"labels": str(longer), "distill": str(weighted)}
        return {"summary": summarize(kept) | {"chosen": chosen}, "cells": kept}

    def _try(self, settings: Sequence[Setting]) -> harness.Study:
        return harness.Study(
            cells={
                (seed, data, model, str(setting)): partial(
                    self.trials.run, setting, model, data, seed
                )
                for seed in self.seeds
                for data in DATA
                for model in MODELS
                for setting in settings
            },
            folder="pretrained",
            summarize=lambda rows: {},
            parallel=self.parallel,
        )


def ranking(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """By setting, the share of the loss that is left: geometric mean over models, data and seeds.

    So a setting is judged by what it changes against the others, however easy a data set is.
    """
    return {
        setting: geometric_mean(row["after"] / row["before"] for row in tried)
        for setting, tried in harness.grouped(rows, "setting").items()
    }


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By setting: the share of the loss that is left over all, and by model and data set."""
    found: dict[str, Any] = {}
    for setting, share in ranking(rows).items():
        tried = [row for row in rows if row["setting"] == setting]
        cells = harness.grouped(tried, "model", "data")
        by = {
            f"{model} on {data}": harness.mean_of(some, "after")
            for (model, data), some in cells.items()
        }
        found[setting] = {"left": round(share, 4), "after": by}
    return {"settings": found}


def table(summary: Mapping[str, Any]) -> str:
    """A row for each setting, in the order of trial; the chosen ones are bold."""
    chosen = set(summary["chosen"].values())
    cells = [f"{model} on {data}" for model in MODELS for data in DATA]
    rows = []
    for setting, found in summary["settings"].items():
        phase, rate, steps, weight = setting.rsplit(" ", 3)
        name = "labels" if phase == "labels" else "distillation"
        name = f"**{name}**" if setting in chosen else name
        after = [f"{found['after'][cell]:.3f}" for cell in cells]
        rows.append([name, rate, steps, weight, f"{found['left']:.1%}", *after])
    columns = ["phase", "learning rate", "steps", "label weight", "loss left", *cells]
    return harness.markdown(columns, rows)


@harness.experiment("results.json", "configuration.md", {"pretrained": table})
def main(
    material: harness.Material,
    models: Annotated[Path, typer.Option(help="Folder with the folders of both models.")],
    seeds: harness.Seeds = "100",
    parallel: harness.Parallel = 2,
    output: harness.Output = harness.RUNS,
) -> Choice:
    """Choose each setting; write results.json beside this file, and the table."""
    folder = output.resolve() / "experiment-pretrained" / "teachers"
    trials = Trials(material.resolve(), models.resolve(), folder)
    return Choice(trials, harness.numbers(seeds), parallel)

"""The library's loop beside transformers' Trainer: ``python -m benchmarks.trainer --json FILE``.

The quickstart's server model with its adapter learns the labels of the public set. Both loops get
the same batches in the same order, the same schedule, optimizer and clipping; they take turns, and
medians are compared. Trainer computes logits at every position, as it has no way to be told which
ones are scored, so a third loop is the library's with logits (no head of its own), which shows how
much of the difference is the loop's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from statistics import mean
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from benchmarks import harness
from fedfuse.algorithms.local_model import LocalModel
from fedfuse.config.run_config import parse
from fedfuse.config.training import TrainingConfig
from fedfuse.data.sampling import sample_indices
from fedfuse.distillation.training import schedule
from fedfuse.tokenizers.dataset import TokenizedDataset

IGNORED = -100


def inputs(data: TokenizedDataset, which: list[int]) -> dict[str, Tensor]:
    """A batch as Trainer wants it: whole samples, labels at the positions that they have."""
    batch = data.batch(np.array(which))
    ids = torch.nn.functional.pad(batch.input_ids, (0, 1))
    labels = torch.full_like(ids, IGNORED)
    labels[batch.sample, batch.row + 1] = batch.label
    return {"input_ids": ids, "labels": labels}


def run_trainer(local_model: LocalModel, settings: TrainingConfig, seed: int) -> float:
    """A phase by Trainer; returns the mean loss over its last tenth."""
    local_model.reset()
    model, data = local_model.lm.model, local_model.public
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, settings))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=settings.steps,
            per_device_train_batch_size=settings.batch_size,
            max_grad_norm=settings.max_grad_norm,
            seed=seed,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            train_sampling_strategy="sequential",
        )
        order = sample_indices(len(data), seed, 0, settings.steps * settings.batch_size)
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=order.tolist(),
            data_collator=lambda which: inputs(data, which),
            optimizers=(optimizer, scheduler),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    return mean(losses[-max(1, settings.steps // 10) :])


def run_library(local_model: LocalModel, settings: TrainingConfig, seed: int) -> float:
    """A phase by the library."""
    local_model.reset()
    return local_model.learn(local_model.public, settings, seed=seed)[0]


def run_library_with_logits(local_model: LocalModel, settings: TrainingConfig, seed: int) -> float:
    """A phase by the library, for a model whose head stays in place."""
    with patch("fedfuse.models.forward.find_head", lambda *_: None):
        return run_library(local_model, settings, seed)


@harness.benchmark
def main(
    file: harness.File,
    repeats: harness.Repeats = 9,
    steps: harness.Steps = 40,
    quick: harness.Quick = False,
) -> Iterator[harness.Measured]:
    """Measure the three loops, and write the result file."""
    torch.set_num_threads(1)
    config = parse(harness.QUICK if quick else {})
    local_model = harness.model_of(config, None)
    settings = replace(config.server_distill, steps=steps)
    loops = {
        "trainer": run_trainer,
        "library": run_library,
        "library with logits": run_library_with_logits,
    }
    for loop in loops.values():
        loop(local_model, replace(settings, steps=1), config.seed)
    timings = harness.Timings()
    jobs = {n: partial(loop, local_model, settings, config.seed) for n, loop in loops.items()}
    losses = timings.alternate(jobs, repeats)
    trainer, logits = timings.median("trainer"), timings.median("library with logits")
    results = {
        "library_over_trainer_time": timings.median("library") / trainer,
        "library_with_logits_over_trainer_time": logits / trainer,
        **{f"{name.replace(' ', '_')}_loss": loss for name, loss in losses.items()},
    }
    yield harness.Measured(results, {"seconds": timings.seconds}, config.seed)

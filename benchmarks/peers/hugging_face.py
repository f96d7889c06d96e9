"""What the peers that are built on transformers' Trainer share; runs in their environments."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from benchmarks.peers.meter import Meter
from benchmarks.peers.work import IGNORED, Measurement, Work


class StepMeter(TrainerCallback):
    """Measures each step of a trainer, from the end of the one before."""

    def __init__(self, meter: Meter, steps: int) -> None:
        self.meter, self.left = meter, steps

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step is over; the first one only set things up."""
        if self.left:
            self.meter.mark()
        else:
            self.meter.stop()
        self.left -= 1


def load_model(folder: str) -> Any:
    """A base model as transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def load_student(work: Work) -> Any:
    """The student and its adapter, whose weights are trained."""
    return PeftModel.from_pretrained(load_model(work.student), work.adapter, is_trainable=True)


def collate(work: Work, which: list[int]) -> dict[str, Tensor]:
    """Samples with the library's tokens, padded on the right."""
    longest = max(len(work.input_ids[i]) for i in which)

    def padded(rows: list[list[int]], value: int) -> Tensor:
        return torch.tensor([rows[i] + [value] * (longest - len(rows[i])) for i in which])

    mask = padded([[1] * len(row) for row in work.input_ids], 0)
    labels = padded(work.labels, IGNORED)
    return {"input_ids": padded(work.input_ids, 0), "attention_mask": mask, "labels": labels}


def arguments(work: Work, folder: str) -> dict[str, Any]:
    """Training arguments of all trainers: float32 on a CPU, and nothing is written."""
    return {
        "output_dir": folder,
        "max_steps": 1 + work.steps,
        "per_device_train_batch_size": len(work.samples),
        "max_grad_norm": work.max_grad_norm,
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }


def optimizers(work: Work, model: Any) -> tuple[Any, Any]:
    """The library's optimizer, and its learning rate at each step."""
    optimizer = torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad],
        lr=1.0,  # times the rate of the step
        betas=(0.9, work.beta2),
        weight_decay=work.weight_decay,
        fused=True,
    )
    last = len(work.rates) - 1
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: work.rates[min(n, last)])
    return optimizer, rates


def run(work: Work, make: Callable[[str], Any]) -> Measurement:
    """Train, and measure the steps but the first.

    Args:
        work: what is trained.
        make: a trainer that writes to a folder.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trainer, meter = make(folder), Meter()
        weights = [weight for weight in trainer.model.parameters() if weight.requires_grad]
        before = [weight.detach().clone() for weight in weights]
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(StepMeter(meter, work.steps))
        trainer.train()
    moved = sum(not torch.equal(old, new) for old, new in zip(before, weights, strict=True))
    log = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    more = {
        "trained_weights": sum(weight.numel() for weight in weights),
        "moved": moved / len(weights),
        "recomputes": bool(trainer.model.get_base_model().is_gradient_checkpointing),
        "gradient_norms": [float(entry["grad_norm"]) for entry in log],
    }
    losses = [float(entry["loss"]) for entry in log]
    return Measurement(meter.seconds, meter.cpu_seconds, meter.peak_bytes, losses, more)

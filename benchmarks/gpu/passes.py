"""Tokens a second of training, extraction and scoring, and what happens when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import models
from benchmarks.gpu.clock import costs
from fedfuse.builtin.text_world import pretraining_text
from fedfuse.config.model import AdapterConfig
from fedfuse.config.training import TrainingConfig
from fedfuse.data.sample import Sample
from fedfuse.distillation.training import Training
from fedfuse.evaluation.losses import sample_nll
from fedfuse.knowledge.extract import extract
from fedfuse.models.causal_lm import CausalLM, add_lora, load_causal_lm
from fedfuse.models.devices import release_cache, total_memory
from fedfuse.models.frozen_layers import frozen_layers
from fedfuse.models.kept_states import KeptStates
from fedfuse.models.states_file import StatesFolder
from fedfuse.tokenizers.dataset import TokenizedDataset

QUARTER = 0.25
GIB = 2**30
# Left on the card where memory is to run out.
LEFT = 3 * GIB


def measure(
    device: torch.device, folder: Path, *, repeats: int, quick: bool
) -> tuple[dict[str, Any], Any]:
    """Tokens a second: adapters everywhere, on the last quarter, and there with kept states."""
    size = models.QUICK_SMALL if quick else models.SMALL
    base = models.make(folder / "small", size, seed=2)
    half = "float32" if device.type == "cpu" else "bfloat16"
    lms = {}
    for name, layers in (("everywhere", 0.0), ("quarter", QUARTER), ("kept", QUARTER)):
        lm = load_causal_lm(str(base), dtype=half, device=device.type)
        lm = add_lora(lm, AdapterConfig(layers=layers))
        lms[name] = _kept(lm, folder / "states") if name == "kept" else lm
    samples = _samples(40 if quick else 2_000)
    data = TokenizedDataset(lms["kept"].tokenizer, samples, 128)
    jobs: dict[str, Callable[[], object]] = {}
    tokens: dict[str, int] = {}
    batch = 8 if quick else 64
    for name, lm in lms.items():
        training = Training(lm, data, TrainingConfig(steps=10_000, batch_size=batch), seed=0)
        jobs |= {
            f"training {name}": training.advance,
            f"extraction {name}": lambda lm=lm: extract(lm, data, 16),
            f"scoring {name}": lambda lm=lm: sample_nll(lm, data),
        }
        mean = data.lengths.mean()
        tokens |= {f"training {name}": round(batch * mean)}
        tokens |= dict.fromkeys((f"extraction {name}", f"scoring {name}"), int(data.lengths.sum()))
    found = costs(jobs, device, repeats)
    results = {
        f"{job.replace(' ', '_')}_tokens_per_second": tokens[job] / cost.median
        for job, cost in found.items()
    }
    for what in ("training", "extraction", "scoring"):
        ratio = found[f"{what} kept"].median / found[f"{what} quarter"].median
        results[f"{what}_kept_over_not_time"] = ratio
    return results, {job: cost.seconds for job, cost in found.items()}


def measure_back_off(device: torch.device, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Take steps that do not fit beside what else is on the card; they end in smaller parts."""
    total = total_memory(device)
    if total is None:
        return {"back_off": "no card whose memory can be taken"}
    size = models.QUICK_SMALL if quick else models.SMALL
    base = models.make(folder / "back-off", size, seed=3)
    lm = add_lora(load_causal_lm(str(base), dtype="bfloat16", device=device.type), AdapterConfig())
    data = TokenizedDataset(lm.tokenizer, _samples(2_048, longer=4), 1_024)
    release_cache(device)
    free = int(torch.accelerator.get_memory_info(device)[0])
    ballast = torch.empty(max(0, free - LEFT), dtype=torch.uint8, device=device)
    training = Training(lm, data, TrainingConfig(steps=3, batch_size=1_024), seed=0)
    losses = [training.advance() for _ in range(3)]
    tokens = 1_024 * int(data.lengths.max())
    del ballast
    release_cache(device)
    return {
        "back_off_from_tokens": tokens,
        "back_off_to_tokens": training.max_tokens,
        "back_off_losses_finite": all(map(torch.isfinite, torch.tensor(losses))),
    }


def _samples(count: int, longer: int = 1) -> list[Sample]:
    """Texts of which the second half is the answer."""
    texts = [sample.text for sample in pretraining_text(count, seed=4)][:count]
    joined = [" ".join(texts[i : i + longer]) for i in range(len(texts))]
    halves = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in joined]
    return [Sample(prompt, answer) for prompt, answer in halves]


def _kept(lm: CausalLM, folder: Path) -> CausalLM:
    layers = frozen_layers(lm.name, lm.model, lm.vocab_size, lm.device)
    if layers is None:
        return lm
    files = StatesFolder(folder, 16 * GIB)
    return replace(lm, kept=KeptStates(layers, lm.model, lm.name, lm.vocab_size, files))

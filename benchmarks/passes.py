"""What passes of a real model cost, one against another of the same texts: ``benchmarks.rounds``.

- Options of questions with four answers against their prompts alone, and the tokens of both.
- Knowledge of a public set against its hidden states.
- Products in bfloat16, and weights too, against float32, in scoring and in training.
- One pass more, in tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks import harness
from fedfuse.config.data import DataConfig
from fedfuse.config.model import AdapterConfig
from fedfuse.config.training import TrainingConfig
from fedfuse.data.sample import Sample
from fedfuse.data.sampling import parts_by_length
from fedfuse.distillation.training import train
from fedfuse.evaluation.losses import sample_nll
from fedfuse.evaluation.options import OptionScorer
from fedfuse.factory.data import load_splits
from fedfuse.factory.models import load_model
from fedfuse.knowledge.extract import extract
from fedfuse.models.allocator import keep_freed_memory
from fedfuse.models.causal_lm import CausalLM, add_lora
from fedfuse.models.head import hidden_states
from fedfuse.models.packed_pass import longest_packed
from fedfuse.models.precision import pass_cost, tokens_per_pass
from fedfuse.tokenizers.dataset import TokenizedDataset

LENGTH, K = 256, 16
QUESTIONS, TEXTS = ("arc_easy", "arc_challenge"), "trec"
# Weights and products: as ``dtype`` and ``autocast``.
PRECISIONS = {
    "float32": ("float32", "none"),
    "bfloat16_products": ("float32", "bfloat16"),
    "bfloat16": ("bfloat16", "none"),
}
# Tokens of a pass, in one piece and in several.
PASS_TOKENS, PIECES = 2048, 16


@dataclass(frozen=True, slots=True)
class Compared:
    """What a job costs over another, and what both took.

    Attributes:
        ratios: by name.
        seconds: of every repeat, by job.
    """

    ratios: Mapping[str, float]
    seconds: Mapping[str, list[float]]

    def __or__(self, other: Compared) -> Compared:
        return Compared({**self.ratios, **other.ratios}, {**self.seconds, **other.seconds})


def measure_passes(model: Path, material: Path, *, repeats: int, quick: bool) -> Compared:
    """All of the above, on one model with an adapter, as it is scored in a federation."""
    keep_freed_memory()  # as every process of a federation does
    count = 4 if quick else 48
    datasets = material / "datasets"
    lm = add_lora(load_model(str(model)), AdapterConfig())
    texts = splits_of(datasets / TEXTS, public=2 * count).public
    found = _extraction(lm, texts, repeats) | _pass_cost(lm, repeats)
    for name in QUESTIONS:
        questions = splits_of(datasets / name, questions=2 * count).questions
        four = [each for each in questions if len(each.options) == len("ABCD")][:count]
        found |= _options(lm, name, four, repeats)
    return found | _precisions(model, texts, repeats, 1 if quick else 4)


def _options(lm: CausalLM, name: str, questions: list[Sample], repeats: int) -> Compared:
    scorer = OptionScorer(lm.tokenizer, questions, LENGTH)
    asked = [Sample(each.prompt, " A", each.domain) for each in questions]
    prompts = TokenizedDataset(lm.tokenizer, asked, LENGTH)  # the answer is predicted, not read
    what = "option_scoring_over_prompt" + ("" if name == QUESTIONS[0] else f"_{name}")
    jobs = {
        f"{name}_options": lambda: sample_nll(lm, scorer.texts),
        f"{name}_prompts": lambda: read(lm, prompts),
    }
    longest = longest_packed(lm.model, lm.vocab_size, lm.device)
    tokens = sum(
        batch.input_ids.numel()
        for batch in scorer.texts.batches(tokens_per_pass(lm.device), pass_cost=1, longest=longest)
    )
    ratios = {f"{what}_tokens": tokens / int(prompts.lengths.sum())}
    return _compare({what: tuple(jobs)}, jobs, repeats) | Compared(ratios, {})


def _extraction(lm: CausalLM, texts: list[Sample], repeats: int) -> Compared:
    data = TokenizedDataset(lm.tokenizer, texts, LENGTH)
    jobs = {"knowledge": lambda: extract(lm, data, K), "texts": lambda: read(lm, data)}
    return _compare({"extraction_over_forward": ("knowledge", "texts")}, jobs, repeats)


def _pass_cost(lm: CausalLM, repeats: int) -> Compared:
    """A pass of t tokens takes ``a + b t``: the same in one pass and in several give both."""
    rows, length = PIECES, PASS_TOKENS // PIECES
    ids = torch.arange(PASS_TOKENS).view(rows, length) % lm.vocab_size

    @torch.no_grad()
    def passes(pieces: int) -> None:
        for part in ids.chunk(pieces):
            hidden_states(lm.model, part)

    jobs = {"one_pass": lambda: passes(1), "several_passes": lambda: passes(rows)}
    timed = _compare({}, jobs, repeats)
    pairs = zip(timed.seconds["one_pass"], timed.seconds["several_passes"], strict=True)
    found = []
    for one, several in pairs:
        begin = (several - one) / (rows - 1)
        found.append(begin / (one - begin) * PASS_TOKENS)
    return timed | Compared({"pass_cost_tokens": median(found)}, {})


def _precisions(model: Path, texts: list[Sample], repeats: int, steps: int) -> Compared:
    jobs: dict[str, Callable[[], Any]] = {}
    ratios: dict[str, float] = {}
    pairs: dict[str, tuple[str, str]] = {}
    losses: dict[str, float] = {}
    settings = TrainingConfig(steps=steps, batch_size=16)
    for name, (dtype, autocast) in PRECISIONS.items():
        lm = add_lora(load_model(str(model), dtype=dtype), AdapterConfig())
        lm = replace(lm, autocast=autocast)
        data = TokenizedDataset(lm.tokenizer, texts, LENGTH)
        losses[name] = float(sample_nll(lm, data).sum() / data.label_bytes.sum())
        jobs[f"scoring_{name}"] = lambda lm=lm, data=data: sample_nll(lm, data)
        jobs[f"training_{name}"] = lambda lm=lm, data=data: train(lm, data, settings, seed=0)
        if name != "float32":
            for what in ("scoring", "training"):
                pairs[f"{what}_{name}_over_float32"] = f"{what}_{name}", f"{what}_float32"
            ratios[f"loss_{name}_over_float32"] = losses[name] / losses["float32"]
    return _compare(pairs, jobs, repeats) | Compared(ratios, {})


def _compare(
    pairs: Mapping[str, tuple[str, ...]], jobs: Mapping[str, Callable[[], Any]], repeats: int
) -> Compared:
    """Time jobs in turns, each once before; ratios of pairs of them, the median over repeats."""
    timings = harness.Timings()
    for job in jobs.values():
        job()
    timings.alternate(jobs, repeats)
    ratios = {
        name: median(a / b for a, b in zip(*(timings.seconds[job] for job in pair), strict=True))
        for name, pair in pairs.items()
    }
    return Compared(ratios, dict(timings.seconds))


def splits_of(folder: Path, *, questions: int = 0, public: int = 4) -> Any:
    """Some samples of a data set."""
    data = DataConfig(
        source=str(folder / "train.jsonl"), partition="iid", private=4, public=public,
        test=max(4, questions), questions=questions, holdout=0, blind=0, max_length=LENGTH,
    )  # fmt: skip
    return load_splits(data, 0, 1)


@torch.no_grad()
def read(lm: CausalLM, data: TokenizedDataset) -> None:
    """Hidden states of all samples, in the batches of a scoring."""
    lm.model.eval()
    cost = pass_cost(lm.model, lm.device)
    for part in parts_by_length(data.lengths, tokens_per_pass(lm.device), cost):
        hidden_states(lm.model, data.batch(np.asarray(part), lm.device).input_ids)

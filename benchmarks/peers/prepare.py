"""The work of a comparison, made with the library: texts, tokens, and an adapter that both have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.work import IGNORED, Work
from fedfuse.config.data import DataConfig
from fedfuse.config.model import AdapterConfig
from fedfuse.config.training import TrainingConfig
from fedfuse.data.sample import Sample
from fedfuse.distillation.training import schedule
from fedfuse.factory.data import load_splits
from fedfuse.factory.models import load_model
from fedfuse.models.causal_lm import adapter_state, add_lora, load_adapter_state, save_adapter
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tokenizers.tokenizer import TextTokenizer

BATCH, LENGTH = 8, 256
BETA2 = 0.95  # of the library's optimizer
# Of an adapter that has learned something: its products are not zero.
LEARNED = 0.03


def phase(steps: int, batch_size: int = BATCH) -> TrainingConfig:
    """A phase of one step that sets things up, and twice so many that are measured."""
    return TrainingConfig(steps=1 + 2 * steps, batch_size=batch_size, learning_rate=1e-3)


def read_samples(file: Path, *, public: int = 4, questions: int = 0) -> Any:
    """Splits of a data set, of which the public samples or the questions are wanted."""
    data = DataConfig(
        source=str(file), partition="iid", private=4, public=public, test=max(4, questions),
        questions=questions, holdout=0, blind=0, max_length=LENGTH,
    )  # fmt: skip
    return load_splits(data, 0, 1)


def choose(samples: Sequence[Sample], *, even: bool = False) -> list[Sample]:
    """A batch of samples that nothing is cut of; ``even`` ones are those of the nearest lengths."""
    fitting = [sample for sample in samples if len(sample.text) <= 2 * LENGTH]
    if not even:
        return fitting[:BATCH]
    ordered = sorted(fitting, key=lambda sample: len(sample.text))
    starts = range(max(1, len(ordered) - BATCH + 1))
    batches = [ordered[start : start + BATCH] for start in starts]
    return min(batches, key=lambda batch: len(batch[-1].text) - len(batch[0].text))


def make_work(
    student: Path,
    teacher: Path,
    samples: Sequence[Sample],
    questions: Sequence[Sample],
    folder: Path,
    *,
    steps: int,
    seed: int = 0,
) -> Work:
    """The work on a batch of samples and on questions.

    Args:
        student: folder of the model that learns.
        teacher: folder of the model that teaches.
        samples: the batch.
        questions: with options.
        folder: where the adapter is put.
        steps: measured steps.
        seed: of the adapter.
    """
    lm = add_lora(load_model(str(student)), AdapterConfig(), seed=seed)
    rng = np.random.default_rng(seed)
    state = {
        name: rng.normal(0, LEARNED, value.shape).astype(np.float32) if "lora_B" in name else value
        for name, value in adapter_state(lm.model).items()
    }
    load_adapter_state(lm.model, state)
    save_adapter(lm.model, folder / "adapter")
    data = TokenizedDataset(lm.tokenizer, samples, LENGTH)
    config = phase(steps, len(samples))
    ids, labels = tokens(data)
    return Work(
        student=str(student),
        teacher=str(teacher),
        adapter=str(folder / "adapter"),
        samples=[(sample.prompt, sample.answer) for sample in samples],
        input_ids=ids,
        labels=labels,
        start=start_token(lm.tokenizer, ids[0]),
        questions=[(question.prompt, list(question.options)) for question in questions],
        max_length=LENGTH,
        rates=[config.learning_rate * schedule(step, config) for step in range(config.steps)],
        beta2=BETA2,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        steps=steps,
        batch_sizes=[1, 4, 8],
    )


def start_token(tokenizer: TextTokenizer, ids: Sequence[int]) -> str:
    """The token that begins an input where the text does not; empty for none."""
    names = {number: token for token, number in tokenizer.vocabulary.items()}
    return names[ids[0]] if ids[0] == tokenizer.bos_id else ""


def tokens(data: TokenizedDataset) -> tuple[list[list[int]], list[list[int]]]:
    """Tokens of all samples, and those of them that are learned; elsewhere ``IGNORED``."""
    ids = [data.input_ids(number).tolist() for number in range(len(data))]
    labels = [[IGNORED] * len(sample) for sample in ids]
    rows = data.rows
    for sample, row, token in zip(rows.sample_of_row, rows.row, rows.token, strict=True):
        labels[sample][row + 1] = int(token)
    return ids, labels

"""Teachers and students of real texts, and what each method teaches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64
from numpy import ndarray

from experiments import harness
from experiments.transfer.trial import DRAWN, PROJECTIONS, aligned, as_targets
from experiments.transfer.tuned import Tuned
from fedfuse.builtin.architectures import MAX_LENGTH, tiny_causal_lm
from fedfuse.config.model import AdapterConfig
from fedfuse.config.training import Objective, TrainingConfig
from fedfuse.data.records import load_records
from fedfuse.data.sample import Sample, Splits
from fedfuse.distillation.targets import Teacher
from fedfuse.distillation.training import train
from fedfuse.events import EventDistribution
from fedfuse.knowledge.extract import extract
from fedfuse.knowledge.record import Knowledge
from fedfuse.models.causal_lm import CausalLM, add_lora, load_causal_lm
from fedfuse.models.forward import label_logits
from fedfuse.sparse import SparseDistribution
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tokenizers.tokenizer import TextTokenizer

# Entries of the teacher's rows.
K = 64
RULES = {
    name: replace(PROJECTIONS[name], k=K)
    for name in ("events", "alm", "events+alm", "unaligned", "fedmkt")
}
# Each rule also beside the labels: the fedmkt rule writes some itself, ALM reads where they are.
LABELS = "labels"
LABEL_WEIGHT = 0.5
BESIDE = f", {LABELS}"
PROJECTED = tuple(f"{rule}{beside}" for rule in RULES for beside in ("", BESIDE))
# The reference: the student learns from the teacher's private texts themselves.
PRIVATE = "private"
METHODS = (*PROJECTED, *DRAWN, LABELS, PRIVATE)
# Learning rates to choose from.
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
ADAPTER = AdapterConfig()
# Words of a text that are given; the rest is scored.
GIVEN = 2
# A text ends so.
END = "\n"
# Teacher and student by their base models' folders.
Pair = tuple[Path, Path]
Projected = SparseDistribution | EventDistribution
Measured = dict[str, float]


@dataclass(frozen=True, eq=False)  # a task is itself only
class Task:
    """What is taught, and how it is measured.

    Attributes:
        splits: private, public and test samples of a seed.
        pairs: teacher and student by the pair's name.
        teacher: the teacher's training on the private samples.
        student: the student's, but for its learning rate.
        losses: nats per byte of a model, by what they are measured on; "" is everything.
        targets: of the rows of a data set, how they are taught.
    """

    splits: Callable[[int], Splits]
    pairs: dict[str, Pair]
    teacher: TrainingConfig
    student: TrainingConfig
    losses: Callable[[CausalLM, TokenizedDataset], Measured]
    targets: Callable[[TokenizedDataset, Projected], Measured]


@dataclass(frozen=True, eq=False)
class Teaching:
    """A trained teacher on the samples of a seed.

    Attributes:
        lm: the teacher.
        losses: its own, see ``Task``.
    """

    lm: CausalLM
    splits: Splits
    losses: Measured


@dataclass(frozen=True)
class Lesson:
    """What a method teaches a student.

    Attributes:
        data: what is trained on.
        projected: the teacher's knowledge on its rows; None where the texts themselves teach.
        of_teacher: the same without what is on rows of which the teacher says nothing.
        label_weight: share of the labels in the loss.
    """

    data: TokenizedDataset
    projected: Projected | None = None
    of_teacher: Projected | None = None
    label_weight: float = 1.0

    @property
    def targets(self) -> Teacher | None:
        """The teacher as training takes it."""
        return None if self.projected is None else as_targets(self.projected)


def load_texts(material: Path, name: str, split: str = "train") -> list[str]:
    """Distinct texts or questions of a data set of the material, each with its end."""
    records = load_records(str(material / "datasets" / name), split)
    texts = [str(record.get("text") or record["question"]) for _, record in records]
    return [text + END for text in dict.fromkeys(texts)]


def sample_of(text: str) -> Sample:
    """A text whose first words are given."""
    words = text.split(" ")
    given = " ".join(words[:GIVEN])
    return Sample(given, text[len(given) :])


def split_texts(texts: Sequence[str], private: int, public: int, test: int, seed: int) -> Splits:
    """Different texts for each purpose, drawn by a seed."""
    order = np.random.default_rng(seed).permutation(len(texts))[: private + public + test]
    samples = [sample_of(texts[i]) for i in order]
    rest = samples[private:]
    return Splits([samples[:private]], rest[:public], rest[public:])


def pretrained(
    folder: Path, make: Callable[[], Any], texts: Sequence[str], config: TrainingConfig
) -> Path:
    """A small model of the tokenizer that is made, trained on texts; once."""
    if (folder / "config.json").exists():
        return folder
    tokenizer = make()
    known = TextTokenizer.from_pretrained(tokenizer)
    size = known.vocab_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tiny_causal_lm("llama", vocab_size=size, width=64, layers=2)
        lm = CausalLM(model, known, folder.name, size, MAX_LENGTH)
        data = TokenizedDataset(known, [Sample("", text) for text in texts], MAX_LENGTH)
        loss, _ = train(lm, data, config, seed=0)
    print(f"pretrained {folder.name}: {loss:.3f} nats per token", flush=True)
    harness.save_pretrained(folder, tokenizer, model)
    return folder


def adapted(base: Path, seed: int) -> CausalLM:
    """A base model with a fresh adapter."""
    return add_lora(load_causal_lm(str(base), device="cpu"), ADAPTER, seed=seed)


def encode(lm: CausalLM, samples: Sequence[Sample]) -> TokenizedDataset:
    """Samples as a model sees them."""
    return TokenizedDataset(lm.tokenizer, samples, MAX_LENGTH)


@lru_cache(maxsize=1)
def teaching(task: Task, pair: str, seed: int) -> Teaching:
    """Train the teacher of a pair on the private samples of a seed."""
    splits, lm = task.splits(seed), adapted(task.pairs[pair][0], seed)
    train(lm, encode(lm, splits.private[0]), task.teacher, seed=seed)
    return Teaching(lm, splits, task.losses(lm, encode(lm, splits.test)))


@lru_cache(maxsize=2)
def knowledge(taught: Teaching, k: int) -> Knowledge:
    """A teacher's next-token distributions on the public samples."""
    return extract(taught.lm, encode(taught.lm, taught.splits.public), k)


def lesson(method: str, taught: Teaching, lm: CausalLM, seed: int) -> Lesson:
    """What a student learns from by a method."""
    if method in DRAWN:
        return Lesson(encode(lm, drawn_texts(taught, DRAWN[method], seed)))
    if method == PRIVATE:
        return Lesson(encode(lm, taught.splits.private[0]))
    data = encode(lm, taught.splits.public)
    if method == LABELS:
        return Lesson(data)
    config = RULES[method.removesuffix(BESIDE)]
    known = knowledge(taught, config.k)
    projected, of_teacher = (
        aligned(rules, known, taught.lm.tokenizer, data, MAX_LENGTH)
        for rules in (config, replace(config, unaligned_positions="skip"))
    )
    weight = LABEL_WEIGHT if method.endswith(BESIDE) else 0.0
    return Lesson(data, projected, of_teacher, weight)


def run_trial(task: Task, pair: str, method: str, rate: float, seed: int) -> list[dict[str, Any]]:
    """Losses of a student before and after, and how its rows are taught."""
    taught, lm = teaching(task, pair, seed), adapted(task.pairs[pair][1], seed)
    test, found = encode(lm, taught.splits.test), lesson(method, taught, lm, seed)
    losses = {"teacher": taught.losses, "before": task.losses(lm, test)}
    objective = Objective(label_weight=found.label_weight)
    config = replace(task.student, learning_rate=rate, objective=objective)
    train(lm, found.data, config, seed=seed, teacher=found.targets)
    losses["after"] = task.losses(lm, test)
    measures = task.targets(found.data, found.of_teacher) if found.of_teacher else {}
    measures |= {f"{time}{on}": x for time, by in losses.items() for on, x in by.items()}
    about = {"pair": pair, "method": method, "rate": rate, "seed": seed}
    return [about | {name: round(value, 5) for name, value in measures.items()}]


def study(
    task: Task,
    folder: str,
    seeds: str,
    tuning_seeds: str,
    parallel: int,
    summarize: Callable[..., Any],
) -> Tuned:
    """Trials of every pair and method of a task; seeds are joined by commas."""
    return Tuned(
        trial=partial(run_trial, task),
        pairs=tuple(task.pairs),
        methods=METHODS,
        rates=RATES,
        tuning_seeds=harness.numbers(tuning_seeds),
        seeds=harness.numbers(seeds),
        folder=folder,
        summarize=summarize,
        parallel=parallel,
    )


def row_losses(lm: CausalLM, data: TokenizedDataset) -> Float64[ndarray, " rows"]:
    """``[T]`` negative log-likelihood of each label, nats."""
    losses = np.zeros(len(data.rows.token))
    for batch, logits in label_logits(lm, data):
        loss = torch.nn.functional.cross_entropy(logits, batch.label, reduction="none")
        losses[batch.index] = loss.cpu().numpy()
    return losses


def nats_per_byte(lm: CausalLM, data: TokenizedDataset) -> Measured:
    """Loss on everything."""
    return {"": float(row_losses(lm, data).sum() / data.label_bytes.sum())}


def taught_share(data: TokenizedDataset, found: Projected) -> Measured:
    """Share of the rows that the teacher teaches."""
    return {"taught": float(taught_rows(found).mean())}


def taught_rows(found: Projected) -> Bool[ndarray, " rows"]:
    """``[T]`` whether a row has a teacher, or is part of a chunk that has one."""
    taught = found.weight > 0
    if isinstance(found, EventDistribution):
        for first in np.flatnonzero(found.chunk_rows).tolist():
            taught[first : first + found.chunk_rows[first]] = True
    return taught


def closed(
    rows: Sequence[harness.Row], reference: Sequence[harness.Row], on: str = ""
) -> list[float]:
    """Of each seed, the share of the way from the untrained student to the reference that is gone.

    Args:
        rows: a method's, one for each seed.
        reference: the reference's, of the same seeds.
        on: part of the texts.
    """
    end = {row["seed"]: row[f"after{on}"] for row in reference}
    return [
        (row[f"before{on}"] - row[f"after{on}"]) / (row[f"before{on}"] - end[row["seed"]])
        for row in rows
    ]


@lru_cache(maxsize=len(DRAWN))
def drawn_texts(taught: Teaching, each: int, seed: int) -> list[Sample]:
    """The public samples with answers drawn from the teacher, ``each`` for a sample."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return list(_draw(taught.lm, taught.splits.public, each))


@torch.no_grad()
def _draw(lm: CausalLM, samples: Sequence[Sample], each: int) -> Iterator[Sample]:
    """Prompts of as many tokens go on together, up to the tokens of the longest sample."""
    model: Any = lm.model
    prompts = lm.tokenizer.encode_ids([sample.prompt for sample in samples])
    longest = max(map(len, lm.tokenizer.encode_ids([sample.text for sample in samples])))
    by_length = sorted(range(len(samples)), key=lambda i: len(prompts[i]))
    for length, group in groupby(by_length, key=lambda i: len(prompts[i])):
        which = [i for i in group for _ in range(each)]
        ids = torch.tensor([[lm.tokenizer.bos_id, *prompts[i]] for i in which])
        found = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            max_new_tokens=max(1, longest - length),
        )
        for i, row in zip(which, found[:, 1:].tolist(), strict=True):
            text = lm.tokenizer.decode(row)
            yield Sample(samples[i].prompt, answer_of(text, samples[i].prompt))


def answer_of(text: str, prompt: str) -> str:
    """What a drawn text says behind its prompt, up to its end."""
    answer, end, _ = text.removeprefix(prompt).partition(END)
    return answer + end

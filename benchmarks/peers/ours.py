"""The library's side of a comparison: ``python -m benchmarks.peers.ours WORK OUTCOME JOB``.

A federation extracts a teacher's knowledge once a round and takes many steps on it. So there are
two measurements of distilling: of the step alone, and of a step before which knowledge is
extracted, aligned and fused. Tables of the pair of tokenizers are made beforehand, like GOLD's map
of the vocabularies. The one teacher is trusted on all samples, so no rule has anything to decide.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from benchmarks.peers.meter import Meter
from benchmarks.peers.prepare import phase
from benchmarks.peers.work import Measurement, Work, write_outcome
from fedfuse.config.knowledge import KnowledgeConfig
from fedfuse.config.model import AdapterConfig
from fedfuse.config.training import Objective, ServerDistillConfig, TrainingConfig
from fedfuse.data.sample import Sample
from fedfuse.distillation.targets import Teacher, batch_losses
from fedfuse.distillation.training import Training
from fedfuse.evaluation.losses import sample_nll
from fedfuse.evaluation.options import OptionScorer
from fedfuse.factory.models import load_model
from fedfuse.fusion.event_mixing import fuse_rows
from fedfuse.knowledge.aligner import KnowledgeAligner
from fedfuse.knowledge.extract import extract
from fedfuse.models.causal_lm import CausalLM, add_lora, load_adapter_state
from fedfuse.sparse import SparseDistribution
from fedfuse.tokenizers.dataset import TokenizedDataset

KL = Objective(label_weight=0.0, divergence="forward-kl")
OBJECTIVES = {"gold": ServerDistillConfig().objective, "gkd": KL}


def load_student(work: Work) -> CausalLM:
    """The student and its adapter."""
    lm = add_lora(load_model(work.student), AdapterConfig())
    load_adapter_state(lm.model, load_file(Path(work.adapter) / "adapter_model.safetensors"))
    return lm


class Lesson:
    """A student, one teacher, and a batch of samples.

    Attributes:
        taught: share of the label rows that the teacher says something about.
    """

    def __init__(self, work: Work, teacher: str) -> None:
        self.samples = [Sample(*pair) for pair in work.samples]
        self.length, self.taught = work.max_length, 0.0
        self.student, self.teacher = load_student(work), load_model(teacher)
        self.data = TokenizedDataset(self.student.tokenizer, self.samples, self.length)
        self.aligner = KnowledgeAligner(
            self.student.tokenizer, self.samples, self.length, KnowledgeConfig()
        )

    def knowledge(self, k: int = KnowledgeConfig().k) -> Teacher:
        """What the teacher knows of the samples, as the student learns it."""
        data = TokenizedDataset(self.teacher.tokenizer, self.samples, self.length)
        known = extract(self.teacher, data, k)
        aligned = self.aligner.for_samples(self.samples)(known, self.teacher.tokenizer)
        self.taught = float(np.mean(aligned.weight > 0))
        rows = len(self.data.rows.token)
        nobody = SparseDistribution.empty(rows, 1, tail_logprob=0.0)
        weights = np.tile(np.array([0, 1], dtype=np.float32), (rows, 1))
        return fuse_rows([nobody, aligned], weights, k)

    @torch.no_grad()
    def loss(self, k: int, objective: Objective) -> float:
        """The student's loss as it begins, by k entries of the teacher's distributions."""
        batch = self.data.batch(np.arange(len(self.data)))
        self.student.model.eval()
        return float(batch_losses(self.student, batch, self.knowledge(k), objective)[0])


def measure_distilling(work: Work, job: str) -> dict[str, Measurement]:
    """Steps with the teacher's knowledge given, then steps that begin with its extraction."""
    lesson = Lesson(work, work.teacher if job == "gold" else work.student)
    objective = OBJECTIVES[job]
    config = _config(work, objective)
    known = lesson.knowledge()
    more: dict[str, object] = {"taught": lesson.taught, "learned": len(lesson.data.rows.token)}
    if job == "gkd":
        more["first_loss_of_all_entries"] = lesson.loss(lesson.student.vocab_size, objective)
    training = Training(lesson.student, lesson.data, config, seed=0, teacher=known)

    def whole() -> float:
        training.teacher = lesson.knowledge()
        return training.advance()

    alone = _steps(work, training, training.advance, more)
    with_extraction = _steps(work, training, whole, {})
    return {job: alone, f"{job} whole": with_extraction}


def measure_labels(work: Work) -> dict[str, Measurement]:
    """Steps on the labels alone."""
    lm = load_student(work)
    data = TokenizedDataset(lm.tokenizer, [Sample(*pair) for pair in work.samples], work.max_length)
    training = Training(lm, data, _config(work, Objective()), seed=0)
    return {"trainer": _steps(work, training, training.advance, {})}


def measure_scoring(work: Work) -> dict[str, Measurement]:
    """Scorings of all options; tokenizing is part of it."""
    lm = load_model(work.student)
    questions = [Sample(prompt, "", options=tuple(options)) for prompt, options in work.questions]

    def score() -> None:
        scorer = OptionScorer(lm.tokenizer, questions, work.max_length)
        found.append(-sample_nll(lm, scorer.texts))

    found: list[np.ndarray] = []
    texts = OptionScorer(lm.tokenizer, questions, work.max_length).texts
    sample_nll(lm, texts.take(np.arange(4)))  # the first passes set things up
    meter = Meter()
    meter.repeat(score, 1)
    rows = texts.rows
    pairs = []
    for number in range(len(texts)):
        option = rows.token[rows.offsets[number] : rows.offsets[number + 1]].tolist()
        whole = texts.input_ids(number).tolist()
        pairs.append([whole[: len(whole) - len(option)], option])
    more = {"tokens": pairs}
    return {
        "harness": Measurement(
            meter.seconds, meter.cpu_seconds, meter.peak_bytes, found[0].tolist(), more
        )
    }


def _config(work: Work, objective: Objective) -> TrainingConfig:
    """The phase that the work's learning rates are of."""
    return replace(phase(work.steps, len(work.samples)), objective=objective)


def _steps(
    work: Work, training: Training, step: Callable[[], float], more: dict[str, object]
) -> Measurement:
    """Measure some steps; the first of a phase comes before them, to set things up."""
    meter = Meter()
    losses = [] if training.step else [step()]
    for _ in range(work.steps):
        training.lm.model.zero_grad(set_to_none=True)  # Trainer does at the end of a step
        meter.repeat(lambda: losses.append(step()), 1)
    return Measurement(meter.seconds, meter.cpu_seconds, meter.peak_bytes, losses, more)


def main(work: Work, job: str) -> dict[str, Measurement]:
    """What a job measures, by name."""
    torch.set_num_threads(1)
    if job in OBJECTIVES:
        return measure_distilling(work, job)
    return {"trainer": measure_labels, "harness": measure_scoring}[job](work)


if __name__ == "__main__":
    write_outcome(Path(sys.argv[2]), main(Work.read(Path(sys.argv[1])), sys.argv[3]))

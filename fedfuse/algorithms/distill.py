"""Distil models into another with a different tokenizer, without a federation.

The same steps as the server's in FedMKT (arXiv 2406.02224), Algorithm 1: the teachers' next-token
distributions on the samples are aligned with the student's tokens and positions, a rule decides
whom to trust on which sample, and the student learns from the fused targets and the labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from fedfuse.config.gate import GateConfig
from fedfuse.config.knowledge import KnowledgeConfig
from fedfuse.config.model import AdapterConfig
from fedfuse.config.training import Objective, TrainingConfig
from fedfuse.data.sample import Sample
from fedfuse.distillation.training import train
from fedfuse.errors import check
from fedfuse.evaluation.losses import sample_nll
from fedfuse.fusion.fuser import KnowledgeFuser
from fedfuse.fusion.rules import NamedRule, Rule, find_rule
from fedfuse.knowledge.aligner import KnowledgeAligner
from fedfuse.knowledge.contexts import context_losses, view_contexts
from fedfuse.knowledge.extract import extract
from fedfuse.models.causal_lm import CausalLM, add_lora, save_adapter
from fedfuse.tokenizers.dataset import TokenizedDataset


@dataclass(frozen=True, slots=True)
class DistilledStudent:
    """A student that has learned.

    Attributes:
        student: the model with its trained LoRA adapter.
        weights: ``[N, C]`` trust in each candidate on each sample; column 0 is the student itself.
        before: mean loss of the answers before, nats per byte.
        after: mean loss of the answers after, nats per byte.
    """

    student: CausalLM
    weights: Float64[ndarray, "samples candidates"]
    before: float
    after: float

    def save(self, folder: Path | str) -> Path:
        """Write the adapter as PEFT does, for ``PeftModel.from_pretrained(base, folder)``."""
        save_adapter(self.student.model, Path(folder))
        return Path(folder)


def distill(
    student: CausalLM,
    teachers: Sequence[CausalLM],
    samples: Sequence[Sample | tuple[str, str]],
    *,
    rule: str | Rule = "dual-min-ce",
    k: int = 16,
    steps: int = 200,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    label_weight: float = 0.3,
    lora: AdapterConfig = AdapterConfig(),  # noqa: B008
    max_length: int = 128,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> DistilledStudent:
    """Train a LoRA adapter of ``student`` on what ``teachers`` expect as next tokens.

    Args:
        student: the model that learns: its base weights stay as they are, its linear layers get an
            adapter in place.
        teachers: models with tokenizers of any kind.
        samples: N samples, or pairs of prompt and answer; only answers are learned.
        rule: whom to trust on which sample: name of a registered rule, ``"module:function"``, or a
            function of ``StackedStats``.
        k: entries of a teacher's distribution to keep per row, at least 1.
        steps: optimizer steps.
        batch_size: samples of a step.
        learning_rate: peak of the schedule.
        label_weight: weight of the labels in the joint loss, in [0, 1].
        lora: the adapter.
        max_length: tokens of a sample; what is beyond is cut off.
        seed: of the adapter, the order of samples, and the rule.
        on_step: called after each step with its number and loss.

    Returns:
        The student with its adapter, and who was trusted.

    Raises:
        FedfuseError: without teachers or samples, for an unknown rule, and for values out of range.
    """
    found, needed = (len(teachers), len(samples)), "at least one teacher and one sample"
    check("distill", found, needed, all(found))
    known = [one if isinstance(one, Sample) else Sample(*one) for one in samples]
    config = TrainingConfig(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        objective=Objective(label_weight=label_weight),
    )
    named = find_rule(rule) if isinstance(rule, str) else NamedRule("", "", rule)
    data = TokenizedDataset(student.tokenizer, known, max_length)
    aligner = KnowledgeAligner(student.tokenizer, known, max_length, KnowledgeConfig())
    contexts = view_contexts(student, data) if named.reads_contexts else None
    fuser = KnowledgeFuser(aligner, extract(student, data, k), contexts)
    others = []
    for teacher in teachers:
        view = TokenizedDataset(teacher.tokenizer, known, max_length)
        context_loss = context_losses(teacher, view) if named.reads_contexts else None
        knowledge = extract(teacher, view, k)
        others.append(fuser.align_teacher(knowledge, teacher.tokenizer, context_loss))
    fused = fuser.fuse(others, named.make(GateConfig(), seed), k)
    before = _mean_loss(student, data)
    adapted = add_lora(student, lora, seed=seed)
    train(adapted, data, config, seed=seed, teacher=fused.teacher, on_step=on_step)
    return DistilledStudent(adapted, fused.weights, before, _mean_loss(adapted, data))


def _mean_loss(model: CausalLM, data: TokenizedDataset) -> float:
    """Loss of the answers, nats per byte."""
    return float(sample_nll(model, data).sum() / np.maximum(data.label_bytes.sum(), 1))

"""How a training phase runs, in plain numbers: no PyTorch is needed to read a run config.

Hyperparameter names and defaults follow FedMKT (arXiv 2406.02224), Appendix: AdamW with beta2 0.95,
warm-up, gradient clipping; the learning rate falls along a cosine within one phase.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedfuse.errors import FedfuseError

DIVERGENCES = ("cross-entropy", "forward-kl", "reverse-kl")
# What products of a forward pass are computed in; "none" leaves it to the weights.
AUTOCAST = ("none", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a student is compared with its teacher.

    Attributes:
        divergence: ``cross-entropy`` (the paper's) or ``forward-kl``, which differ by the teacher's
            entropy and have one gradient: the student covers all that the teacher says; or
            ``reverse-kl`` (Gu et al., "MiniLLM", arXiv 2306.08543): the student may leave out what
            it cannot say, and is drawn to the teacher's largest modes.
        temperature: above 0; both distributions over the k + 1 classes are raised to its inverse,
            and the loss is multiplied by its square, as gradients shrink with it (Hinton et al.,
            arXiv 1503.02531). 1 compares what is there.
    """

    divergence: str = "cross-entropy"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        wrong = []
        if self.divergence not in DIVERGENCES:
            wrong.append(f"divergence {self.divergence!r}; allowed: {', '.join(DIVERGENCES)}")
        if not 0 < self.temperature < float("inf"):
            wrong.append(f"temperature {self.temperature}; allowed: above 0")
        if wrong:
            raise FedfuseError("distillation with " + "; ".join(wrong))


PLAIN = Comparison()


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How one training phase runs.

    Attributes:
        steps: optimizer steps, 0 or more.
        batch_size: samples per step, 1 or more.
        learning_rate: peak of the schedule, above 0.
        warmup_ratio: share of the steps that climb linearly, in [0, 1].
        final_ratio: where the cosine ends, as a share of the peak, in [0, 1].
        weight_decay: AdamW's, 0 or more.
        max_grad_norm: gradients are clipped to this norm, above 0.
        comparison: how the student is compared with a teacher.
        max_tokens: tokens in one forward and backward pass, padding included, 1 or more, or 0 for
            the whole batch. A step's samples are sorted by length and cut into parts of no more,
            whose gradients add up to the batch's: the result is the same (but for dropout and
            rounding), in less memory. A single longer sample is a part.
        consolidation: how firmly weights are held that matter where selection trusts the learning
            model itself, 0 or more; see ``fedfuse.distillation.ewc``.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_ratio: float = 0.02
    final_ratio: float = 0.1
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    comparison: Comparison = PLAIN
    max_tokens: int = 0
    consolidation: float = 0.0

"""Training phases and objectives, in plain numbers: no PyTorch is needed to read a run config.

Hyperparameter names and defaults follow FedMKT (arXiv 2406.02224), Appendix: AdamW with beta2 0.95,
warm-up, gradient clipping; the learning rate falls along a cosine within one phase.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedfuse.config.fields import between, check_fields, inline, internal, one_of

DIVERGENCES = ("cross-entropy", "forward-kl", "reverse-kl")
# Precision of matrix products in a forward pass; "none" leaves it to the weights.
AUTOCAST = ("none", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Objective:
    """Joint loss of labels and a teacher: ``w * CE(labels) + (1 - w) * D(teacher, student)``.

    Attributes:
        label_weight: lambda of the joint loss, in [0, 1]; 1 trains on labels alone.
        divergence: ``cross-entropy`` (the paper's) or ``forward-kl``, which differ by the teacher's
            entropy and have one gradient: the student covers all of the teacher's modes; or
            ``reverse-kl`` (Gu et al., "MiniLLM", arXiv 2306.08543): the student may leave out what
            it cannot represent, and is drawn to the teacher's largest modes.
        temperature: above 0; both distributions over the k + 1 classes are raised to its inverse,
            and the loss is multiplied by its square, as gradients shrink with it (Hinton et al.,
            arXiv 1503.02531). 1 changes nothing (the paper has no temperature).
    """

    label_weight: float = between(1.0, 0, 1)
    divergence: str = one_of("cross-entropy", *DIVERGENCES)
    temperature: float = between(1.0, 0, above=True)

    def __post_init__(self) -> None:
        check_fields(self, "objective")


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """One training phase; as a section of the run config, the local one on private labels.

    Attributes:
        steps: optimizer steps, 0 or more.
        batch_size: samples per step, 1 or more.
        learning_rate: peak of the schedule, above 0: warm-up and cosine within the phase.
        max_tokens: tokens in one forward and backward pass, padding included, 1 or more, or 0 for
            the whole batch. A step's samples are sorted by length and cut into parts of no more,
            whose gradients add up to the batch's: the result is the same (but for dropout and
            rounding), in less memory. A single longer sample is a part.
        warmup_ratio: share of the steps that climb linearly, in [0, 1].
        final_ratio: last learning rate of the cosine, as a share of the peak, in [0, 1].
        weight_decay: AdamW's, 0 or more.
        max_grad_norm: largest norm of the gradient, above 0; longer ones are clipped.
        objective: joint loss where there is a teacher; without one, labels alone.
        ewc: strength of elastic weight consolidation, 0 or more; 0 for none (not in the paper). See
            ``fedfuse.distillation.ewc``.
    """

    steps: int = between(140, 0)
    batch_size: int = between(32, 1)
    learning_rate: float = between(1e-2, 0, above=True)
    max_tokens: int = between(0, 0)
    warmup_ratio: float = between(0.02, 0, 1)
    final_ratio: float = internal(0.1)
    weight_decay: float = between(0.01, 0)
    max_grad_norm: float = internal(1.0)
    objective: Objective = internal(Objective())  # noqa: RUF009
    ewc: float = internal(0.0)


@dataclass(frozen=True, slots=True)
class ServerDistillConfig(TrainingConfig):
    """The server's phase on the public set (FedMKT Eq. 5)."""

    steps: int = between(280, 0)
    learning_rate: float = between(8e-3, 0, above=True)
    objective: Objective = inline(Objective(label_weight=0.05))  # noqa: RUF009
    ewc: float = between(10.0, 0)


@dataclass(frozen=True, slots=True)
class ClientDistillConfig(ServerDistillConfig):
    """A client's phase on the public set (FedMKT Eq. 6).

    Attributes:
        replay: add the label loss of a private batch at every step, so that learning from others
            does not cost what the client knew (not in the paper).
    """

    steps: int = between(240, 0)
    learning_rate: float = between(1.2e-2, 0, above=True)
    objective: Objective = inline(Objective(label_weight=0.03))  # noqa: RUF009
    ewc: float = between(0.0, 0)  # replay does it
    replay: bool = True

"""The learned gate's networks and training, in plain numbers: no PyTorch to read a run config."""

from __future__ import annotations

from dataclasses import dataclass

from fedfuse.config.fields import between, check_fields, internal, one_of, words

FEATURES = (
    "context-loss",
    "entropy",
    "margin",
    "kept-mass",
    "neighbour-accuracy",
    "label-likelihood",
)
# Features that need no label of the sample that is weighed.
LABEL_FREE = FEATURES[:-1]


@dataclass(frozen=True, slots=True)
class GateConfig:
    """Gate that learns how much to trust each candidate, and its training.

    Attributes:
        network: ``equivariant`` takes any number of candidates; the paper's ``perceptron`` sees
            scores alone and takes a fixed number.
        loss: ``labels``, the labels' negative log-likelihood under the mixture, or
            ``distillation``, the paper's; see ``fedfuse.fusion.gating.learned_gate``.
        features: inputs of the equivariant network for each candidate, joined by commas.
        folds: K of the cross-fitting, 2 or more; 1 weighs samples by a gate that saw their labels.
        threshold: tau of the dynamic selection: candidates with less weight are dropped; 0.15 in
            the paper, with five candidates.
        feedback: beta of the feedback-driven loss, the squared coefficient of variation of the
            candidates' importance (load balancing of mixtures of experts); 0.5 in the paper.
        steps: steps of the gate's optimizer in a round.
        learning_rate: AdamW's, above 0.
        weight_decay: AdamW's, 0 or more.
        width: hidden width of the equivariant network.
        neighbours: similar samples that ``neighbour-accuracy`` looks at.
        batch_size: samples per step.
    """

    network: str = one_of("equivariant", "equivariant", "perceptron")
    loss: str = one_of("labels", "labels", "distillation")
    features: str = words(LABEL_FREE, FEATURES)
    folds: int = between(10, 1)
    threshold: float = between(0.4, 0, 0.99)
    feedback: float = between(0.05, 0)
    steps: int = between(50, 0)
    learning_rate: float = internal(between(1e-2, 0, above=True))
    weight_decay: float = internal(between(0.1, 0))
    width: int = internal(between(16, 1))
    neighbours: int = internal(between(24, 1))
    batch_size: int = internal(between(128, 1))

    def __post_init__(self) -> None:
        check_fields(self, "gate")

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features, of ``FEATURES``."""
        return tuple(name.strip() for name in self.features.split(",") if name.strip())

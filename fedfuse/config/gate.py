"""How a selector is built and trained, in plain numbers: no PyTorch is needed to read a config."""

from __future__ import annotations

from dataclasses import dataclass

from fedfuse.errors import FedfuseError

NETWORKS = ("equivariant", "perceptron")
SIGNALS = ("labels", "distillation")
UNITS = ("sample", "row")
FEATURES = ("prompt-loss", "entropy", "margin", "kept-mass", "record", "reward")
# What needs no label of the sample that is weighed.
LABEL_FREE = FEATURES[:-1]


@dataclass(frozen=True, slots=True)
class GateConfig:
    """An adaptive selector and its training.

    Attributes:
        network: ``equivariant``, or the paper's ``perceptron``, which sees the scores alone and
            takes a fixed number of candidates.
        signal: ``labels``, or ``distillation`` (the paper's); see
            ``fedfuse.fusion.gating.learned_gate``.
        features: what the equivariant network sees, of ``FEATURES``.
        unit: weights per ``sample`` or per label ``row``.
        folds: K of the cross-fitting, 2 or more; 1 weighs samples by a gate that saw their labels.
        threshold: tau of the dynamic selection, in [0, 1); 0.15 in the paper, with five candidates.
        feedback: beta of the feedback-driven loss, 0 or more; 0.5 in the paper.
        steps: of the gate's optimizer in a round.
        learning_rate: of AdamW, above 0.
        weight_decay: of AdamW, 0 or more.
        width: of the equivariant network.
        neighbours: samples that a track record is made of.
        batch_size: rows per step.
    """

    network: str = "equivariant"
    signal: str = "labels"
    features: tuple[str, ...] = LABEL_FREE
    unit: str = "sample"
    folds: int = 10
    threshold: float = 0.4
    feedback: float = 0.05
    steps: int = 50
    learning_rate: float = 1e-2
    weight_decay: float = 0.1
    width: int = 16
    neighbours: int = 24
    batch_size: int = 256

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {value!r}; allowed: {' or '.join(allowed)}"
            for name, value, allowed in (
                ("network", self.network, NETWORKS),
                ("signal", self.signal, SIGNALS),
                ("unit", self.unit, UNITS),
            )
            if value not in allowed
        ]
        if not self.features or set(self.features) - set(FEATURES):
            given = ", ".join(self.features) or "none"
            wrong.append(f"features are {given}; allowed: one or more of {', '.join(FEATURES)}")
        for name in ("folds", "width", "neighbours", "batch_size"):
            if getattr(self, name) < 1:
                wrong.append(f"{name} is {getattr(self, name)}; allowed: at least 1")
        if not 0 <= self.threshold < 1:
            wrong.append(f"threshold is {self.threshold}; allowed: 0 to below 1")
        if not 0 < self.learning_rate < float("inf"):
            wrong.append(f"learning_rate is {self.learning_rate}; allowed: above 0")
        for name in ("steps", "feedback", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                wrong.append(f"{name} is {getattr(self, name)}; allowed: at least 0")
        if wrong:
            raise FedfuseError("selector " + "; ".join(wrong))

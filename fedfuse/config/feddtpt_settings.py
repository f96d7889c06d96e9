"""How clients search and how the server aggregates; light to import, for whoever reads configs."""

from __future__ import annotations

from dataclasses import dataclass

from fedfuse.errors import FedfuseError

PROPOSERS = ("feedback", "masked-lm", "random")
CHOICES = ("all", "aggregated", "none")
METHODS = ("gain", "paper", "average", "attention", "k-means")


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How long and how a client searches.

    Attributes:
        proposer: ``feedback``, or one of the ablations ``masked-lm`` and ``random``.
        evaluations: prompts to evaluate, the first one not counted; at least 0.
        patience: evaluations in a row without a gain after which to stop, at least 1.
        max_length: tokens from which on nothing is inserted, at least 1.
        top: of the masked language model's proposals to draw from, at least 1.
    """

    proposer: str = "feedback"
    evaluations: int = 15
    patience: int = 15
    max_length: int = 16
    top: int = 60

    def __post_init__(self) -> None:
        wrong = []
        if self.proposer not in PROPOSERS:
            wrong.append(f"proposer is {self.proposer!r}; allowed: {', '.join(PROPOSERS)}")
        for name, least in (("evaluations", 0), ("patience", 1), ("max_length", 1), ("top", 1)):
            if getattr(self, name) < least:
                wrong.append(f"{name} is {getattr(self, name)}; allowed: at least {least}")
        if wrong:
            raise FedfuseError("search " + "; ".join(wrong))


@dataclass(frozen=True, slots=True)
class AggregationSettings:
    """How prompts are made one.

    Attributes:
        method: one of ``METHODS``.
        max_tokens: most tokens of the result, at least 1; the paper names about 150.
        min_samples: of DBSCAN, at least 2.
        fixed_size: clusters of ``k-means`` and tokens of ``attention``, at least 1.
        noise_discount: weight of noise in ``gain``, as a share of what it would have, in [0, 1].
        seed: of k-means.
    """

    method: str = "gain"
    max_tokens: int = 14
    min_samples: int = 2
    fixed_size: int = 10
    noise_discount: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = []
        if self.method not in METHODS:
            wrong.append(f"method is {self.method!r}; allowed: {', '.join(METHODS)}")
        for key, least in (("max_tokens", 1), ("min_samples", 2), ("fixed_size", 1)):
            if getattr(self, key) < least:
                wrong.append(f"{key} is {getattr(self, key)}; allowed: at least {least}")
        if not 0 <= self.noise_discount <= 1:
            wrong.append(f"noise_discount is {self.noise_discount}; allowed: 0 to 1")
        if wrong:
            raise FedfuseError("aggregation: " + "; ".join(wrong))

"""What training took, in one account for the federation and for what it is compared with."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from fedfuse.config.training import TrainingConfig


@dataclass(frozen=True, slots=True)
class Effort:
    """What some phases of training took.

    Attributes:
        steps: optimizer steps.
        private_samples: private samples in those steps, each as often as it was seen.
        public_samples: public samples in those steps.
        queries: samples that teachers were asked about: as many teachers as there are, so often.
    """

    steps: int = 0
    private_samples: int = 0
    public_samples: int = 0
    queries: int = 0

    @classmethod
    def of(
        cls, phase: TrainingConfig, *, private: bool = False, public: bool = False, queries: int = 0
    ) -> Effort:
        """A whole phase, each step of which sees a batch of private samples, of public ones, or
        both.
        """
        seen = phase.steps * phase.batch_size
        return cls(phase.steps, seen * private, seen * public, queries)

    def __add__(self, other: Effort) -> Effort:
        return Effort(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: int) -> Effort:
        return Effort(*(times * value for value in astuple(self)))

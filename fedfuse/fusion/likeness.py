"""Which samples are most like each sample: those of its domain, the nearest hidden states first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from fedfuse.data.sample import Sample

# Samples that a sample is likened to.
NEIGHBOURS = 16
# Samples at a time that are compared with all others.
_SAMPLES = 1024


@dataclass(frozen=True, slots=True)
class Prompts:
    """N prompts as the learning model sees them.

    Attributes:
        samples: N of them, with their domains.
        state: ``[N, d]`` pooled hidden states by the learning model's base; None for models that
            have none, and where nobody looked.
    """

    samples: Sequence[Sample]
    state: Float32[ndarray, "samples width"] | None


def nearest(of: Prompts, among: Prompts) -> Int64[ndarray, "samples neighbours"]:
    """For each of N prompts, numbers of the ``NEIGHBOURS`` others that are most like it.

    Those of its domain come first; among them, those of largest cosine of the states, the mean over
    all subtracted. Fewer where there are not so many.

    Args:
        of: the prompts.
        among: those to choose from; where it is ``of`` itself, no prompt is its own neighbour.
    """
    size = len(of.samples)
    everything = [*of.samples, *among.samples]
    _, domains = np.unique([sample.domain for sample in everything], return_inverse=True)
    states = np.zeros((len(everything), 1))
    if of.state is not None and among.state is not None:
        states = np.concatenate([of.state, among.state]).astype(np.float64)
        states -= states.mean(0)
        states /= np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-12)
    others = len(among.samples) - (of is among)
    found = np.empty((size, min(NEIGHBOURS, others)), dtype=np.int64)
    for start in range(0, size, _SAMPLES):
        some = np.arange(start, min(start + _SAMPLES, size))
        likeness = states[some] @ states[size:].T
        likeness += 3.0 * (domains[some, None] == domains[size:])  # cosines are 2 apart at most
        if of is among:
            likeness[some - start, some] = -np.inf
        found[some] = np.argsort(-likeness, axis=1, kind="stable")[:, : found.shape[1]]
    return found

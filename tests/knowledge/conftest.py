"""Knowledge of tiny models on the shared public set, and small records made by hand."""

from __future__ import annotations

import numpy as np

from fedfuse.knowledge.record import Knowledge

VOCAB = 50


def random_knowledge(
    seed: int = 0, samples: int = 3, rows: int = 7, k: int = 4, concentration: float = 1.0
) -> Knowledge:
    """A good record: distinct indices, descending, mass one, a label in every row's reach."""
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(0, rows + 1, size=samples - 1))
    mass = np.sort(rng.dirichlet(np.full(k + 1, concentration), size=rows))[:, ::-1]
    mass = np.maximum(mass, 1e-30)
    kept = mass[:, :k].astype(np.float32)
    return Knowledge(
        offsets=np.concatenate([[0], cuts, [rows]]),
        indices=np.argsort(rng.random((rows, VOCAB)), axis=1)[:, :k],
        logprobs=np.log(kept),
        tail_logprob=np.log(mass[:, k].astype(np.float32)),
        label_logprob=np.log(kept[:, -1]),
        label_bytes=rng.integers(1, 300, size=samples),
        tokenizer="tokenizer",
        public="public",
    )

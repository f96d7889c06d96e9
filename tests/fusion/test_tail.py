"""The paper's rule for the mass outside the kept entries: it is taken as zero."""

from dataclasses import replace

import numpy as np

from fedfuse.distillation.loss import DistillationTargets
from fedfuse.sparse import SparseDistribution


def test_without_a_tail_the_kept_entries_are_all_there_is():
    teacher = SparseDistribution(
        indices=np.array([[3, 5]]),
        logprobs=np.log(np.array([[0.3, 0.1]], dtype=np.float32)),
        tail_logprob=np.log(np.array([0.6], dtype=np.float32)),
        weight=np.ones(1, dtype=np.float32),
    )
    kept = DistillationTargets.from_sparse(teacher, "cpu")
    np.testing.assert_allclose(kept.probs.numpy(), [[0.3, 0.1]], rtol=1e-5)
    np.testing.assert_allclose(kept.tail.numpy(), [0.6], rtol=1e-5)
    without = replace(teacher, tail_logprob=np.full(1, -np.inf, dtype=np.float32))
    dropped = DistillationTargets.from_sparse(without, "cpu")
    np.testing.assert_allclose(dropped.probs.numpy(), [[0.75, 0.25]], rtol=1e-5)
    np.testing.assert_allclose(dropped.tail.numpy(), [0.0])

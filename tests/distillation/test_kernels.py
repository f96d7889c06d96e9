"""The GPU's kernels give the loss and gradients of the chunked path, in Triton's interpreter.

``make test-kernels`` installs Triton, which is large, and runs this; without it the test is
skipped. The interpreter must be chosen before Triton is imported, so it runs in its own process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

CHECK = """
import torch
from fedfuse.config.training import Objective
from fedfuse.distillation import fused
from fedfuse.distillation.loss import DistillationTargets
from fedfuse.models import kernels, logsumexp
from fedfuse.models.head import Head

torch.manual_seed(0)
logits = 9 * torch.randn(7, 5000)
logits[1, :4999] = -torch.inf
logits[2] = -torch.inf
right = logits.logsumexp(1)
found = kernels.logsumexp(logits)
assert torch.equal(torch.isinf(found), torch.isinf(right))
torch.testing.assert_close(found, right)
factor = torch.randn(7)
wanted = (logits - right.clamp_min(-1e30)[:, None]).exp() * factor[:, None]
torch.testing.assert_close(kernels.softmax_(logits.clone(), found, factor), wanted)

rows, vocab, width, k = 6, 4500, 8, 4
hidden, weight = torch.randn(rows, width), torch.randn(vocab, width)
label = torch.randint(vocab, (rows,))
mass = torch.distributions.Dirichlet(torch.ones(k + 1)).sample((rows,))
indices = torch.stack([torch.randperm(vocab)[:k] for _ in range(rows)])
teacher = DistillationTargets(indices, mass[:, :k], mass[:, k], torch.rand(rows))
results = []
for usable in (False, True):
    logsumexp.has_kernels = lambda device, usable=usable: usable
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = fused.fused_distillation_loss(h, Head(w), label, teacher, Objective(0.3), chunk=4)
    loss.backward()
    results.append((loss.detach(), h.grad, w.grad))
torch.testing.assert_close(results[1], results[0])
print("checked", len(results))
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: test-kernels")
def test_kernels_equal_the_chunked_path() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "checked 2"

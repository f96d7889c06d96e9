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
from fedfuse.distillation.event_targets import EventClasses
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
tokens = DistillationTargets(indices, mass[:, :k], mass[:, k], torch.rand(rows))

# Over events: ranges of two permutations, from one token to all of them; one row has three
# teachers, one of them over tokens, the last has none.
teaches = torch.tensor([0, 0, 0, 1, 2, 3, 4])
start = torch.tensor([[5, 900], [0, 4000], [7, 8], [3, 70], [2000, 0], [0, 0], [4498, 0]])
stop = torch.tensor([[6, 950], [3000, 4200], [8, 9], [4, 71], [2600, 0], [vocab, 0], [vocab, 30]])
used = torch.cat([stop > start, torch.ones(len(teaches), 1, dtype=torch.bool)], 1)
probs = torch.distributions.Dirichlet(torch.ones(3)).sample((len(teaches),)) * used
events = EventClasses(
    num_rows=rows,
    row=teaches,
    orders=torch.stack([torch.randperm(vocab, dtype=torch.int32) for _ in range(2)]),
    order=torch.tensor([0, 1, -1, -1, 0, 1, 1]),
    start=start,
    stop=stop,
    probs=probs / probs.sum(1, keepdim=True),
    weight=torch.rand(len(teaches)),
)
checked = 0
for teacher in (tokens, events, None):
    for head in ({}, {"scale": 0.7, "softcap": 20.0}):
        results = []
        for usable in (False, True):
            logsumexp.has_kernels = lambda device, usable=usable: usable
            h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
            loss = fused.fused_distillation_loss(
                h, Head(w, **head), label, teacher, Objective(0.3), chunk=4
            )
            loss.backward()
            results.append((loss.detach(), h.grad, w.grad))
        torch.testing.assert_close(results[1], results[0])
        checked += results[1][1].isfinite().all().item()
print("checked", checked)
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
    assert done.stdout.strip() == "checked 6"

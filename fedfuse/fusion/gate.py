"""One gate and one round of its training: from evidence as tensors to gating probabilities.

Kong et al. (Fusion-X), arXiv 2505.23844: ``L = signal + beta * CV^2``.

The gradient goes through the gating probabilities g before the threshold, in signal and importance.
Through the threshold only kept candidates would learn, and one that fell below it could never
return; so the threshold is applied when weights are given out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy import ndarray
from torch import Tensor, nn

from fedfuse.distillation.encoded import to_tensor
from fedfuse.fusion.evidence import Evidence
from fedfuse.fusion.features import build_features, track_record
from fedfuse.fusion.network import EquivariantNetwork, Perceptron, feedback_loss
from fedfuse.fusion.settings import SelectorSettings


@dataclass(frozen=True, slots=True)
class GateInputs:
    """A round's evidence for one gate: U units (samples or rows), T rows, C candidates.

    Attributes:
        features: ``[U, C, F]``.
        usable: ``[U, C]`` whether a candidate says anything there.
        unit_of_row: ``[T]`` the unit whose weights each row gets.
        row_usable: ``[T, C]``.
        label_logprob: ``[T, C]``.
        student_nats: ``[T, C]``.
        train_rows: rows of the samples to learn from; their order is the samples'.
        held_rows: rows of the samples that this gate weighs.
    """

    features: Float[Tensor, "units candidates features"]
    usable: Bool[Tensor, "units candidates"]
    unit_of_row: Int64[ndarray, " rows"]
    row_usable: Bool[Tensor, "rows candidates"]
    label_logprob: Float[Tensor, "rows candidates"]
    student_nats: Float[Tensor, "rows candidates"]
    train_rows: Int64[ndarray, " train"]
    held_rows: Int64[ndarray, " held"]


def prepare(
    evidence: Evidence, settings: SelectorSettings, known: Bool[ndarray, " samples"]
) -> GateInputs:
    """Evidence for the gate that may look at the labels of the ``[N]`` known samples.

    With all samples known (no cross-fitting) it weighs what it learned from.
    """
    owner = evidence.sample_of_row
    per_row = settings.unit == "row"
    if settings.network == "perceptron":
        score = evidence.reward[owner] if per_row else evidence.reward
        features = score[:, :, None]
    else:
        record = None
        if "record" in settings.features:
            record = track_record(evidence, known, settings.neighbours)
        features = build_features(evidence, settings.features, record, per_row=per_row)
    train = known[owner]
    held = np.ones_like(train) if known.all() else ~train
    return GateInputs(
        features=to_tensor(features, "cpu"),
        usable=to_tensor(evidence.usable if per_row else evidence.available, "cpu"),
        unit_of_row=np.arange(len(owner)) if per_row else owner,
        row_usable=to_tensor(evidence.usable, "cpu"),
        label_logprob=to_tensor(evidence.label_logprob, "cpu"),
        student_nats=to_tensor(evidence.student_nats, "cpu"),
        train_rows=np.flatnonzero(train),
        held_rows=np.flatnonzero(held),
    )


def new_gate(settings: SelectorSettings, candidates: int, features: int, seed: int) -> nn.Module:
    """An untrained network; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if settings.network == "perceptron":
            return Perceptron(candidates)
        return EquivariantNetwork(features, settings.width)


def train_gate(
    gate: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: GateInputs,
    settings: SelectorSettings,
    rng: np.random.Generator,
) -> None:
    """One round's steps; with many rows, each on a random part of them."""
    rows = inputs.train_rows
    if not len(rows):
        return
    few = len(rows) <= settings.batch_size
    batch = rows
    which, place = np.unique(inputs.unit_of_row[batch], return_inverse=True)
    for _ in range(settings.steps):
        if not few:
            batch = np.sort(rng.choice(rows, settings.batch_size, replace=False))
            which, place = np.unique(inputs.unit_of_row[batch], return_inverse=True)
        log_gate = gate(inputs.features[which], inputs.usable[which])
        loss = signal(log_gate[place], inputs, batch, settings.signal)
        loss = loss + settings.feedback * feedback_loss(log_gate.exp())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def signal(
    log_gate: Float[Tensor, "rows candidates"],
    inputs: GateInputs,
    rows: Int64[ndarray, " rows"],
    kind: str,
) -> Float[Tensor, ""]:
    """What the gate minimises beside the feedback loss, nats per row.

    ``labels``: ``-log sum_n w_n p_n(label)``. ``distillation`` (the paper's): the cross-entropy of
    the fused target and the learning model q, ``sum_n w_n CE(p_n, q)``, as cross-entropy is linear
    in the target. w is g over the candidates that say something on the row.
    """
    usable = inputs.row_usable[rows]
    log_weight = torch.log_softmax(log_gate.masked_fill(~usable, -1e9), dim=1)
    if kind == "distillation":
        return (log_weight.exp() * inputs.student_nats[rows]).sum(1).mean()
    return -(log_weight + inputs.label_logprob[rows]).logsumexp(1).mean()

"""The joint loss from hidden states, without ever holding the logits of all rows.

The loss is that of ``fedfuse.distillation.loss``, with logits ``z = head(h)``. It depends on a
row's V logits only through a few kept ones, the label's, and ``o``, the log-sum-exp of the others.
So with ``L`` a row's loss

    dL/dz = dL/do * softmax of the others  +  dL/dkept and dL/dlabel, added at k + 1 places

and whatever ``L`` does with these few numbers is left to autograd. The dense work is that of plain
cross-entropy: one product with W, one exponential, one product back. It does not depend on how many
teachers were merged into the targets.

Rows are taken in chunks; a chunk's gradient is formed right after its loss, from the same buffer,
and its logits are forgotten. That the gradient is formed in the forward pass, up to the factor that
arrives in the backward pass, follows Hsu et al., "Liger Kernel", arXiv 2410.10989 (fused linear
cross-entropy).

On a GPU the same code runs with larger chunks, and ``models.kernels`` for what is not a
matrix product. Cut Cross-Entropy (Wijmans et al., arXiv 2411.09009) and Liger Kernel do not fit:
they give the loss of one token a row, from which only the log-sum-exp of the whole vocabulary could
be had, not that of the tokens outside the k (their difference loses a small tail to rounding), and
Liger's distillation losses take dense teachers. On a GPU this file has not been run yet; the
kernels have been, in Triton's interpreter.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedfuse.config.training import Objective
from fedfuse.distillation.loss import Targets, even_parts
from fedfuse.models.head import Head, rows_per_chunk
from fedfuse.models.logsumexp import logsumexp_excluding_


def fused_distillation_loss(
    hidden: Float[Tensor, "rows width"],
    head: Head,
    label: Int64[Tensor, " rows"],
    teacher: Targets | None,
    objective: Objective,
    *,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """Mean over label rows of the joint loss, as ``distillation_loss`` of the head's logits.

    Gradients go to the hidden states, and to the head's weight and bias where they ask for one.
    Products run in the head's dtype, everything else in float32 (or wider): in half precision
    logits are as exact as the model's own.

    Args:
        hidden: ``[R, d]`` of any floating dtype.
        head: of V rows.
        label: the token each row should predict.
        teacher: targets of the rows; None for labels alone, at full weight.
        objective: weight of the labels, divergence and temperature.
        chunk: rows whose logits exist at once; by default what suits the device.

    Returns:
        A scalar, nats per label row, float32 or wider; 0 without rows.
    """
    chunk = chunk or rows_per_chunk(len(head.weight), hidden.device)
    tensors = [hidden, head.weight, head.bias]
    if not torch.is_grad_enabled():  # a Function cannot see it, and would form the gradients
        tensors = [None if t is None else t.detach() for t in tensors]
    # Autocast would cast the weight anew for every chunk.
    with torch.autocast(hidden.device.type, enabled=False):
        function: Any = _FusedLoss  # untyped
        loss: Tensor = function.apply(*tensors, head, label, teacher, objective, chunk)
    return loss


class _FusedLoss(torch.autograd.Function):
    """Loss and gradients in one go over the rows."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        label: Tensor,
        teacher: Targets | None,
        objective: Objective,
        chunk: int,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[:3]
        wide = torch.promote_types(weight.dtype, torch.float32)
        # Sums over chunks are kept wide; a row of the hidden states has one summand.
        sums = [
            torch.zeros_like(tensor, dtype=dtype) if tensor is not None and want else None
            for tensor, dtype, want in zip(
                (hidden, weight, bias), (weight.dtype, wide, wide), wanted, strict=True
            )
        ]
        total = hidden.new_zeros((), dtype=wide)
        for rows in even_parts(len(hidden), chunk) if teacher is None else teacher.parts(chunk):
            part = None if teacher is None else teacher[rows]
            states = hidden[rows].to(weight.dtype)
            loss, gradient = _loss_and_gradient(
                head, states, label[rows], part, objective, any(wanted)
            )
            total += loss
            if gradient is not None:
                _add(sums, rows, states, weight, gradient)
        count = max(1, len(hidden))
        ctx.save_for_backward(*sums)
        ctx.count, ctx.wide = count, wide
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden, weight, bias)]
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        # The mean comes last: in half precision a row's gradient over the number of rows is lost.
        factor = grad_output / ctx.count
        return (
            *(
                None if gradient is None else (gradient.to(ctx.wide) * factor).to(dtype)
                for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
            ),
            *(None,) * 5,
        )


def _loss_and_gradient(
    head: Head,
    states: Float[Tensor, "rows width"],
    label: Int64[Tensor, " rows"],
    teacher: Targets | None,
    objective: Objective,
    wanted: bool,
) -> tuple[Float[Tensor, ""], Float[Tensor, "rows vocab"] | None]:
    """A chunk's summed loss and, ``[r, V]``, its derivative by ``h W^T + bias`` if wanted."""
    logits = head.logits(states)  # [r, vocab]
    slope = head.slope(logits)
    row, token = (label[:0], label[:0]) if teacher is None else teacher.read()
    places = row * logits.shape[1] + token
    kept, label_score = logits.view(-1)[places], logits.gather(1, label[:, None])
    outside, softmax_ = logsumexp_excluding_(logits, places)

    scores = [kept, outside, label_score[:, 0]]
    with torch.enable_grad():
        kept, outside, label_score = (score.requires_grad_(wanted) for score in scores)
        if teacher is None:
            loss = (outside - label_score).sum()
        else:
            loss = teacher.losses(kept, outside, label_score, objective).sum()
    if not wanted:
        return loss, None
    by_kept, by_outside, by_label = torch.autograd.grad(
        loss, scores, allow_unused=True, materialize_grads=True
    )
    gradient = softmax_(by_outside)
    gradient.view(-1).scatter_add_(0, places, by_kept)
    gradient.scatter_add_(1, label[:, None], by_label[:, None])
    return loss.detach(), gradient if slope is None else gradient.mul_(slope)


def _add(
    sums: list[Tensor | None],
    rows: slice,
    states: Float[Tensor, "rows width"],
    weight: Float[Tensor, "vocab width"],
    gradient: Float[Tensor, "rows vocab"],
) -> None:
    """Add a chunk's gradient to those of hidden states, weight and bias, as far as asked for."""
    by_hidden, by_weight, by_bias = sums
    if by_bias is not None:
        by_bias += gradient.sum(0)
    gradient = gradient.to(weight.dtype)
    if by_hidden is not None:
        by_hidden[rows] = gradient @ weight
    if by_weight is not None:
        by_weight += gradient.T @ states

"""Log-sum-exp of logits without some tokens of each row, whose logits are read one by one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def logsumexp_excluding_(
    logits: Float[Tensor, "rows vocab"], places: Int64[Tensor, " places"]
) -> tuple[Float[Tensor, " rows"], Callable[[Tensor], Tensor]]:
    """Log-sum-exp and softmax over all but some tokens of each row, in the memory of the logits.

    Args:
        logits: contiguous; overwritten.
        places: the tokens, each as ``row * V + token``.

    Returns:
        ``[R]`` log-sum-exp of the others' logits, -inf where there are none; and a function that
        turns the logits into the others' softmax (0 for the tokens themselves) times a factor
        ``[R]``, ``[R, V]``. It can be called once.
    """
    logits.view(-1).scatter_(0, places, -torch.inf)
    if logits.dtype == torch.float32 and has_kernels(logits.device.type):
        from fedfuse.models import kernels

        outside = kernels.logsumexp(logits)
        return outside, lambda factor: kernels.softmax_(logits, outside, factor)
    limits = torch.finfo(logits.dtype)
    largest = logits.amax(1, keepdim=True).clamp_min(limits.min)  # [r, 1]
    others = logits.sub_(largest).exp_()
    mass = others.sum(1, keepdim=True)  # [r, 1]
    return (
        (mass.log() + largest)[:, 0],
        lambda factor: others.mul_(factor[:, None] / mass.clamp_min(limits.tiny)),
    )


@cache
def has_kernels(device: str) -> bool:
    """Whether there are faster kernels for a kind of device."""
    return device == "cuda" and find_spec("triton") is not None

"""Log-sum-exp and softmax of logits on a GPU: one pass over memory for each, in Triton.

PyTorch's own operations read and write the logits once for each of largest, difference,
exponential, sum and product; on a GPU that is a good part of what a large vocabulary costs beside
the products with the head. The log-sum-exp in one pass follows Milakov and Gimelshein, "Online
normalizer calculation for softmax", arXiv 1805.02867.

Import this file only where Triton is installed: PyTorch's CUDA builds bring it along.
"""

# Kernels are read by Triton's compiler, whose names have no types.
# mypy: ignore-errors

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float32
from torch import Tensor

BLOCK = 4096


def logsumexp(logits: Float32[Tensor, "rows vocab"]) -> Float32[Tensor, " rows"]:
    """``[R]`` of each row; -inf for a row of nothing but -inf."""
    result = torch.empty(len(logits), device=logits.device)
    _logsumexp[(len(logits),)](logits, result, logits.stride(0), logits.shape[1], BLOCK=BLOCK)
    return result


def softmax_(
    logits: Float32[Tensor, "rows vocab"],
    total: Float32[Tensor, " rows"],
    factor: Float32[Tensor, " rows"],
) -> Float32[Tensor, "rows vocab"]:
    """Softmax times a factor of each row, in the memory of the logits.

    Args:
        logits: with contiguous rows.
        total: ``logsumexp`` of them.
        factor: what each row is multiplied by.
    """
    grid = (len(logits), triton.cdiv(logits.shape[1], BLOCK))
    # What autograd returns may be a column of something wider.
    total, factor = total.contiguous(), factor.contiguous()
    _softmax[grid](logits, total, factor, logits.stride(0), logits.shape[1], BLOCK=BLOCK)
    return logits


@triton.jit
def _logsumexp(logits, result, stride, vocab, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    largest = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    for start in range(0, vocab, BLOCK):
        at = start + tl.arange(0, BLOCK)
        scores = tl.load(logits + row * stride + at, mask=at < vocab, other=float("-inf"))
        now = tl.maximum(largest, tl.max(scores, 0))
        # Minus infinity less itself is no number.
        shift = tl.where(now == float("-inf"), 0.0, now)
        total = total * tl.exp(largest - shift) + tl.sum(tl.exp(scores - shift), 0)
        largest = now
    tl.store(result + row, tl.where(total > 0, tl.log(total) + largest, float("-inf")))


@triton.jit
def _softmax(logits, total, factor, stride, vocab, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = logits + row * stride + at
    whole = tl.load(total + row)
    shift = tl.where(whole == float("-inf"), 0.0, whole)
    scores = tl.load(place, mask=at < vocab, other=float("-inf"))
    tl.store(place, tl.exp(scores - shift) * tl.load(factor + row), mask=at < vocab)

"""Gating networks: features of the candidates in, probabilities out.

Kong et al., "Enabling Flexible Multi-LLM Integration for Scalable Knowledge Aggregation", arXiv
2505.23844 (Fusion-X): the perceptron, the dynamic threshold, and the feedback-driven loss (Eq. 13).

Differs from the paper: ``BatchedEquivariant`` are not in it. One scorer serves every candidate and
sees beside the candidate's own evidence the mean over all of them (Zaheer et al., "Deep Sets",
arXiv 1703.06114), so candidates may come and go, and their order means nothing.

Networks have candidates before units, since a sum or softmax over few candidates goes through whole
rows of units then; weights are ``[U, C]``, as everywhere else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class BatchedLinear(nn.Module):
    """K linear layers of one shape, side by side.

    Attributes:
        weight: ``[K, outputs, inputs]``.
        bias: ``[K, outputs]``, or None.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias: nn.Parameter | None = None
        if all(layer.bias is not None for layer in layers):
            self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))

    def forward(self, x: Float[Tensor, "gates *units inputs"]) -> Float[Tensor, "gates *units out"]:
        """See ``batched_linear``."""
        return batched_linear(x, self.weight, self.bias)


def batched_linear(
    x: Float[Tensor, "gates *units inputs"],
    weight: Float[Tensor, "gates out inputs"],
    bias: Float[Tensor, "gates out"] | None = None,
) -> Float[Tensor, "gates *units out"]:
    """Each of K layers on its own part of ``x``."""
    flat = x.flatten(1, -2)
    if bias is None:
        found = torch.bmm(flat, weight.mT)
    else:
        found = torch.baddbmm(bias[:, None], flat, weight.mT)
    return found.view(*x.shape[:-1], weight.shape[1])


class BatchedPerceptron(nn.Module):
    """K of the paper's networks for exactly n candidates: n -> 2n -> n -> n, GELU between, softmax.

    Args:
        candidates: n.
        seeds: K, of the weights.
    """

    def __init__(self, candidates: int, seeds: Sequence[int]) -> None:
        super().__init__()
        n = candidates
        self.candidates = n
        first, second, third = init_layers(seeds, (n, 2 * n), (2 * n, n), (n, n))
        self.layers = nn.Sequential(first, nn.GELU(), second, nn.GELU(), third)

    def forward(
        self,
        features: Float[Tensor, "gates candidates units features"],
        usable: Bool[Tensor, "candidates units"],
    ) -> Float[Tensor, "gates candidates units"]:
        """``[K, n, U]`` log of the gating probabilities; one feature per candidate, its score."""
        return masked_log_softmax(self.layers(features.squeeze(3).mT).mT, usable)


class BatchedEquivariant(nn.Module):
    """K shared scorers for any number of candidates, which also see their mean.

    ``h_c = GELU(A x_c)``, ``s_c = v . GELU(B [h_c, mean_c' h_c'])``, ``g = softmax(s)``, means and
    softmax over the candidates that are usable.

    Args:
        features: of a candidate.
        width: of h.
        seeds: K, of the weights.
    """

    def __init__(self, features: int, width: int, seeds: Sequence[int]) -> None:
        super().__init__()
        self.embed, self.mix, self.score = init_layers(
            seeds, (features, width), (2 * width, width), (width, 1)
        )
        self.score.bias = None  # softmax would take it away

    def forward(
        self,
        features: Float[Tensor, "gates candidates units features"],
        usable: Bool[Tensor, "candidates units"],
    ) -> Float[Tensor, "gates candidates units"]:
        """``[K, C, U]`` log of the gating probabilities."""
        hidden = nn.functional.gelu(self.embed(features))  # [K, C, U, width]
        here = usable[:, :, None].to(hidden.dtype)
        mean = (hidden * here).sum(1) / here.sum(0).clamp_min(1)  # [K, U, width]
        # B [h_c, mean] by its halves: that of the mean is the same for all candidates.
        of_one, of_all = self.mix.weight.chunk(2, dim=2)
        mixed = (
            batched_linear(hidden, of_one) + batched_linear(mean, of_all, self.mix.bias)[:, None]
        )
        return masked_log_softmax(self.score(nn.functional.gelu(mixed)).squeeze(3), usable)


def init_layers(seeds: Sequence[int], *shapes: tuple[int, int]) -> list[BatchedLinear]:
    """Layers of K networks, ``(inputs, outputs)`` each; torch's global generator is left as it was.

    A network's weights follow from its own seed, whatever the others are.
    """
    networks = []
    with torch.random.fork_rng(devices=[]):
        for seed in seeds:
            torch.manual_seed(seed)
            networks.append([nn.Linear(*shape) for shape in shapes])
    return [BatchedLinear(layers) for layers in zip(*networks, strict=True)]


def masked_log_softmax(
    scores: Float[Tensor, "gates candidates units"], usable: Bool[Tensor, "candidates units"]
) -> Float[Tensor, "gates candidates units"]:
    """Log-softmax over the usable candidates; a very small number for the others.

    The first candidate, the learning model itself, counts as usable always, so that no row is
    without any.
    """
    own = torch.zeros_like(usable)
    own[0] = True
    return torch.log_softmax(scores.masked_fill(~(usable | own), -1e9), dim=1)


def dynamic_selection(
    gate: Float[Tensor, "units candidates"], threshold: float
) -> Float[Tensor, "units candidates"]:
    """Weights over the candidates kept: those above the threshold or, if none is, the largest.

    Args:
        gate: ``[U, C]`` gating probabilities g.
        threshold: tau; 0.15 in the paper, with five candidates.

    Returns:
        ``[U, C]`` g renormalised over the kept candidates, 0 for the others.
    """
    keep = gate > threshold
    largest = torch.zeros_like(keep).scatter(1, gate.argmax(1, keepdim=True), True)
    keep = torch.where(keep.any(1, keepdim=True), keep, largest)
    kept = gate * keep
    return kept / kept.sum(1, keepdim=True)


def feedback_loss(
    weights: Float[Tensor, "*gates units candidates"],
) -> Float[Tensor, "*gates"]:
    """Eq. 13: squared coefficient of variation of the importance, ``var / mean^2``.

    importance_n is the sum of candidate n's weights over the batch; the variance is the
    population's, so it is zero for one candidate; also where there are no weights at all.
    """
    variance, mean = torch.var_mean(weights.sum(-2), dim=-1, correction=0)
    return variance / mean.clamp_min(1e-12) ** 2

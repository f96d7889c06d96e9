"""Adaptive selection networks: evidence about the candidates in, trust out.

Kong et al., "Enabling Flexible Multi-LLM Integration for Scalable Knowledge Aggregation", arXiv
2505.23844 (Fusion-X): the perceptron, the dynamic threshold, and the feedback-driven loss (Eq. 13).

Differs from the paper: ``EquivariantNetwork`` is not in it. One scorer serves every candidate and
sees beside the candidate's own evidence the mean over all of them (Zaheer et al., "Deep Sets",
arXiv 1703.06114), so candidates may come and go, and their order means nothing.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class Perceptron(nn.Module):
    """The paper's network for exactly n candidates: n -> 2n -> n -> n, GELU between, softmax."""

    def __init__(self, candidates: int) -> None:
        super().__init__()
        n = candidates
        self.candidates = n
        self.layers = nn.Sequential(
            nn.Linear(n, 2 * n), nn.GELU(), nn.Linear(2 * n, n), nn.GELU(), nn.Linear(n, n)
        )

    def forward(
        self,
        features: Float[Tensor, "units candidates features"],
        usable: Bool[Tensor, "units candidates"],
    ) -> Float[Tensor, "units candidates"]:
        """``[U, n]`` log of the gating probabilities; one feature per candidate, its score."""
        return masked_log_softmax(self.layers(features[:, :, 0]), usable)


class EquivariantNetwork(nn.Module):
    """A shared scorer for any number of candidates, which also sees their mean.

    ``h_c = GELU(A x_c)``, ``s_c = v . GELU(B [h_c, mean_c' h_c'])``, ``g = softmax(s)``, means and
    softmax over the candidates that are usable.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(features, width)
        self.mix = nn.Linear(2 * width, width)
        self.score = nn.Linear(width, 1, bias=False)  # softmax would take a bias away

    def forward(
        self,
        features: Float[Tensor, "units candidates features"],
        usable: Bool[Tensor, "units candidates"],
    ) -> Float[Tensor, "units candidates"]:
        """``[U, C]`` log of the gating probabilities."""
        hidden = nn.functional.gelu(self.embed(features))  # [U, C, width]
        here = usable[:, :, None].to(hidden.dtype)
        mean = (hidden * here).sum(1, keepdim=True) / here.sum(1, keepdim=True).clamp_min(1)
        # B [h_c, mean] by its halves: that of the mean is the same for all candidates.
        of_one, of_all = self.mix.weight.chunk(2, dim=1)
        mixed = hidden @ of_one.T + nn.functional.linear(mean, of_all, self.mix.bias)
        score = self.score(nn.functional.gelu(mixed))[:, :, 0]
        return masked_log_softmax(score, usable)


def masked_log_softmax(
    scores: Float[Tensor, "units candidates"], usable: Bool[Tensor, "units candidates"]
) -> Float[Tensor, "units candidates"]:
    """Log-softmax over the usable candidates; a very small number for the others.

    The first candidate, the learning model itself, counts as usable always, so that no row is
    without any.
    """
    own = torch.zeros_like(usable)
    own[:, 0] = True
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
    importance = weights.sum(-2)
    mean = importance.mean(-1, keepdim=True)
    return ((importance - mean) ** 2).mean(-1) / mean[..., 0].clamp_min(1e-12) ** 2
